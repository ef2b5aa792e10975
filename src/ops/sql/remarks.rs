//! What a step says about its result: `report`, one row of numbers, and `notes`, lines for the log. Both are queries that
//! see the inputs and the result, which is the view `output`.

use std::collections::BTreeMap;

use duckdb::Connection;

use super::super::{Cell, Context, OpError, Problem, Table};
use super::query::Query;
use super::refuse;
use crate::config::Columns;
use crate::graph::Node;

const REPORT: &str = "report";
const NOTES: &str = "notes";
/// The view of the result.
const OUTPUT: &str = "output";

/// Prepares both on empty tables. `output` are the columns of the result, where they are known.
pub(super) fn check(
    node: &Node,
    database: &Connection,
    inputs: &BTreeMap<String, Option<Columns>>,
    output: Option<&Columns>,
) -> Result<(), Problem> {
    for param in [REPORT, NOTES] {
        let Some(query) = Query::beside(node, param) else {
            continue;
        };
        if inputs.contains_key(OUTPUT) {
            return Err(Problem {
                at: format!("inputs.{OUTPUT}"),
                message: format!("`{OUTPUT}` is the result of the step in its `{param}`"),
                help: Some("give the input another name".to_owned()),
            });
        }
        let mut views = inputs.clone();
        views.insert(OUTPUT.to_owned(), output.cloned());
        if let Some(columns) = query.check(database, &views)? {
            fits(&query, &columns)?;
        }
    }
    Ok(())
}

fn fits(query: &Query, columns: &Columns) -> Result<(), Problem> {
    let wrong = |message: String, help: &str| {
        Err(Problem {
            at: query.param.to_owned(),
            message: format!("{}: {message}", query.name()),
            help: Some(help.to_owned()),
        })
    };
    if query.param == NOTES {
        return match columns.as_slice() {
            [(_, kind)] if kind == "VARCHAR" => Ok(()),
            [(name, kind)] => wrong(
                format!("the column `{name}` is {kind}, notes are text"),
                "cast it with `::varchar`",
            ),
            _ => wrong(
                format!("notes are one column, this gives {}", columns.len()),
                "put the text together with `||` or `format`",
            ),
        };
    }
    match columns.iter().find(|(_, kind)| !is_number(kind)) {
        Some((name, kind)) => wrong(
            format!("the column `{name}` is {kind}, a report is numbers"),
            "count it, or leave it out",
        ),
        None => Ok(()),
    }
}

/// Whether a DuckDB type is read as a number.
fn is_number(kind: &str) -> bool {
    const NUMBERS: [&str; 12] = [
        "TINYINT",
        "SMALLINT",
        "INTEGER",
        "BIGINT",
        "HUGEINT",
        "UTINYINT",
        "USMALLINT",
        "UINTEGER",
        "UBIGINT",
        "UHUGEINT",
        "FLOAT",
        "DOUBLE",
    ];
    NUMBERS.contains(&kind) || kind.starts_with("DECIMAL")
}

/// Runs both, once the result is given.
pub(super) fn make(ctx: &mut Context) -> Result<(), OpError> {
    let mut views = ctx.inputs.clone();
    let result = ctx.outputs.artifacts.get("rows").cloned();
    views.extend(result.map(|artifact| (OUTPUT.to_owned(), artifact)));
    let ask = |query: &Query| -> Result<Table, OpError> {
        ctx.cache().with_views(&views, |connection| {
            let asked = Table::query_with(connection, query.text, &query.params);
            asked.map_err(|error| match error {
                OpError::Database(error) => refuse(query.problem(&error.to_string(), 0)),
                other => other,
            })
        })
    };
    if let Some(query) = Query::beside(ctx.node, NOTES) {
        for line in ask(&query)?.rows.iter().flatten().filter_map(Cell::as_str) {
            ctx.info(line);
        }
    }
    if let Some(query) = Query::beside(ctx.node, REPORT) {
        let table = ask(&query)?;
        let [row] = table.rows.as_slice() else {
            return Err(OpError::with_help(
                format!(
                    "{}: a report is one row, this gives {}",
                    query.name(),
                    table.rows.len()
                ),
                "aggregate, as with `count(*)`",
            ));
        };
        // NULL is the sum or mean of no rows: there is no number to report.
        let numbers = table.columns.iter().zip(row);
        for ((name, _), value) in
            numbers.filter_map(|(column, cell)| Some((column, cell.as_f64()?)))
        {
            ctx.report(name, value);
        }
    }
    Ok(())
}
