//! What is needed to run a user's query: is it one SELECT, does it fix an order, which params does it use.

use std::collections::BTreeMap;
use std::path::Path;

use duckdb::{Connection, Statement};
use serde_json::Value;

use super::error::first_line;
use super::{Artifact, CacheError};
use crate::config::ArtifactKind;
use crate::digest::Digest;

/// Double-quotes a name for use in SQL.
pub fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Single-quotes a text for use in SQL.
pub(super) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// A path as DuckDB's readers take it: signs of a pattern stand for themselves.
pub(crate) fn file_literal(path: &Path) -> String {
    let mut escaped = String::new();
    for c in path.to_string_lossy().chars() {
        match c {
            '[' | '*' | '?' => escaped.extend(['[', c, ']']),
            c => escaped.push(c),
        }
    }
    literal(&escaped)
}

/// The DuckDB table that holds a table artifact.
pub(super) fn table_name(digest: &Digest) -> String {
    format!("t_{digest}")
}

/// Makes every table among `inputs` a view named as its port.
pub(super) fn create_views(
    connection: &Connection,
    inputs: &BTreeMap<String, Artifact>,
) -> Result<(), CacheError> {
    let tables = inputs
        .iter()
        .filter(|(_, artifact)| artifact.kind == ArtifactKind::Table);
    for (port, artifact) in tables {
        let sql = format!(
            "create temp view {} as select * from {}",
            quote(port),
            quote(&table_name(&artifact.digest))
        );
        connection.execute_batch(&sql)?;
    }
    Ok(())
}

/// Checks that `sql` is a single SELECT; says whether its outermost level has an ORDER BY.
pub(crate) fn is_ordered(connection: &Connection, sql: &str) -> Result<bool, CacheError> {
    let tree: String =
        connection.query_row("select json_serialize_sql(?::varchar)", [sql], |row| {
            row.get(0)
        })?;
    let tree: Value =
        serde_json::from_str(&tree).map_err(|error| CacheError::Query(error.to_string()))?;
    if tree["error"].as_bool() == Some(true) {
        return Err(CacheError::Query(parse_error(sql, &tree)));
    }
    let statements = tree["statements"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let [statement] = statements else {
        return Err(CacheError::Query(format!(
            "a query is one SELECT; there are {} statements",
            statements.len()
        )));
    };
    let mut node = &statement["node"];
    while node["type"] == "CTE_NODE" {
        node = &node["child"];
    }
    let modifiers = node["modifiers"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    Ok(modifiers
        .iter()
        .any(|modifier| modifier["type"] == "ORDER_MODIFIER"))
}

/// The parser's message with the line and column it points to.
fn parse_error(sql: &str, tree: &Value) -> String {
    let message = first_line(
        tree["error_message"]
            .as_str()
            .unwrap_or("the query cannot be read"),
    );
    if message.starts_with("Only SELECT statements") {
        return "a query is one SELECT; this is another statement".to_owned();
    }
    let position = tree["position"]
        .as_str()
        .and_then(|text| text.parse::<usize>().ok());
    let Some(before) = position.and_then(|position| sql.get(..position)) else {
        return message;
    };
    let line = before.matches('\n').count() + 1;
    let column = before
        .rsplit('\n')
        .next()
        .unwrap_or_default()
        .chars()
        .count()
        + 1;
    format!("{message} (line {line}, column {column})")
}

/// Binds the params that the statement names; a name without a value is an error, a value without a use is not.
pub(crate) fn bind(
    statement: &mut Statement,
    params: &[(String, Value)],
) -> Result<(), CacheError> {
    for index in 1..=statement.parameter_count() {
        let name = statement.parameter_name(index)?;
        let Some((_, value)) = params.iter().find(|(param, _)| *param == name) else {
            let known = params.iter().map(|(name, _)| name.clone()).collect();
            return Err(CacheError::UnknownParam { name, known });
        };
        let bound = match value {
            Value::Null => statement.raw_bind_parameter(index, None::<String>),
            Value::Bool(value) => statement.raw_bind_parameter(index, value),
            Value::String(text) => statement.raw_bind_parameter(index, text),
            Value::Number(number) => match number.as_i64() {
                Some(integer) => statement.raw_bind_parameter(index, integer),
                None => statement.raw_bind_parameter(index, number.as_f64().unwrap_or(f64::NAN)),
            },
            // The C interface binds no lists or structs; their JSON text casts to them: `$labels::varchar[]`.
            Value::Array(_) | Value::Object(_) => {
                statement.raw_bind_parameter(index, value.to_string())
            }
        };
        bound.map_err(|error| CacheError::BadParam {
            name,
            message: error.to_string(),
        })?;
    }
    Ok(())
}
