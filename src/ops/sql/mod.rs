//! The op `sql`: one SELECT over its inputs, which are views named by their ports.
//!
//! The text is never templated: params are bound as `$name`. Before a run the query is prepared on empty tables of the
//! inputs' columns, so that its mistakes show then, and its columns are known to what comes after. What a step has to
//! say about its result, its [remarks], are queries as well.

mod query;
mod remarks;
#[cfg(test)]
mod stages;

use std::collections::BTreeMap;

use serde_json::json;

use self::query::Query;
use super::{Context, Op, OpError, Outputs, Problem, checker};
use crate::cache::CacheError;
use crate::config::{Columns, Interface, Param, ParamKind, Port};
use crate::graph::Node;

pub struct Sql;

impl Op for Sql {
    fn name(&self) -> &'static str {
        "sql"
    }

    fn version(&self) -> u32 {
        1
    }

    fn interface(&self) -> Interface {
        let params = [
            (
                "query",
                Param::optional(
                    ParamKind::Text,
                    "One SELECT; its inputs are views, `$name` is a param.",
                ),
            ),
            (
                "file",
                Param::optional(
                    ParamKind::File,
                    "A file with the query, in the place of `query`.",
                ),
            ),
            (
                "params",
                Param::default(
                    ParamKind::Map(Box::new(ParamKind::Any)),
                    json!({}),
                    "Values for `$name`; a list or record is bound as JSON text.",
                ),
            ),
            (
                "report",
                Param::optional(
                    ParamKind::File,
                    "A file with a SELECT that gives one row of numbers, reported by their column names; sees the inputs and the result as `output`.",
                ),
            ),
            (
                "notes",
                Param::optional(
                    ParamKind::File,
                    "A file with a SELECT of one text column, each row a line of the log; sees the inputs and the result as `output`.",
                ),
            ),
        ];
        Interface {
            doc: "Runs one SELECT over its inputs.".to_owned(),
            params: params
                .into_iter()
                .map(|(name, param)| (name.to_owned(), param))
                .collect(),
            inputs: BTreeMap::new(),
            outputs: BTreeMap::from([(
                "rows".to_owned(),
                Port::table("The result; ordered if the query says so.", &[]),
            )]),
            open_inputs: true,
        }
    }

    fn columns(
        &self,
        node: &Node,
        inputs: &BTreeMap<String, Option<Columns>>,
    ) -> Result<BTreeMap<String, Option<Columns>>, Vec<Problem>> {
        let query = Query::of(node).map_err(|problem| vec![problem])?;
        let checked = checker::with(|database| {
            let columns = query.check(database, inputs)?;
            remarks::check(node, database, inputs, columns.as_ref())?;
            Ok(columns)
        });
        let checked = checked.unwrap_or_else(|error| {
            Err(Problem {
                at: String::new(),
                message: error.to_string(),
                help: None,
            })
        });
        checked
            .map(|columns| BTreeMap::from([("rows".to_owned(), columns)]))
            .map_err(|problem| vec![problem])
    }
}

pub fn run(ctx: &mut Context) -> Result<Outputs, OpError> {
    let query = Query::of(ctx.node).map_err(refuse)?;
    match ctx.give_query("rows", query.text, &query.params) {
        // The statement that keeps the result has a line before the query.
        Err(OpError::Cache(CacheError::Query(message))) => {
            return Err(refuse(query.problem(&message, 1)));
        }
        given => given?,
    }
    remarks::make(ctx)?;
    ctx.finish()
}

fn refuse(problem: Problem) -> OpError {
    OpError::Failed {
        message: problem.message,
        help: problem.help,
    }
}
