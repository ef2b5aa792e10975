//! Rows of a query, for people and for programs.

use duckdb::Connection;
use serde_json::{Map, Value};

use super::error::CliError;
use crate::cache::CacheError;
use crate::ui::table;

/// How many characters of a text are shown.
const SHOWN_TEXT: usize = 60;

pub struct Rows {
    columns: Vec<String>,
    pub rows: Vec<Map<String, Value>>,
}

impl Rows {
    /// Runs a query; DuckDB itself turns values of every type into JSON.
    pub fn read(connection: &Connection, query: &str) -> Result<Self, CliError> {
        let failed = |error: duckdb::Error| CacheError::Query(error.to_string());
        let mut statement = connection
            .prepare(&format!("describe {query}"))
            .map_err(failed)?;
        let names = statement.query_map([], |row| row.get(0)).map_err(failed)?;
        let columns = names.collect::<Result<Vec<String>, _>>().map_err(failed)?;
        let as_json = format!("select to_json(row_)::varchar from (\n{query}\n) row_");
        let mut statement = connection.prepare(&as_json).map_err(failed)?;
        let mut found = statement.query([]).map_err(failed)?;
        let mut rows = Vec::new();
        while let Some(row) = found.next().map_err(failed)? {
            let text: String = row.get(0).map_err(failed)?;
            rows.push(serde_json::from_str(&text).map_err(std::io::Error::from)?);
        }
        Ok(Self { columns, rows })
    }

    /// An array of row objects.
    pub fn into_json(self) -> Value {
        Value::Array(self.rows.into_iter().map(Value::Object).collect())
    }

    /// A table no wider than `width`, long texts cut.
    pub fn as_text(&self, width: Option<u16>) -> String {
        let header: Vec<_> = self.columns.iter().map(String::as_str).collect();
        let row = |row: &Map<String, Value>| {
            self.columns
                .iter()
                .map(|column| cell(row.get(column)))
                .collect()
        };
        let rows: Vec<Vec<_>> = self.rows.iter().map(row).collect();
        table(&header, &rows, width)
    }
}

/// A value on one line of bounded length.
fn cell(value: Option<&Value>) -> String {
    let text = match value {
        None | Some(Value::Null) => String::new(),
        // Also what would steer a terminal.
        Some(Value::String(text)) => text.replace(char::is_control, " "),
        Some(Value::Number(number)) if number.is_f64() => {
            crate::ui::number(number.as_f64().unwrap_or_default())
        }
        Some(other) => other.to_string(),
    };
    if text.chars().count() <= SHOWN_TEXT {
        return text;
    }
    text.chars().take(SHOWN_TEXT - 1).chain(['…']).collect()
}
