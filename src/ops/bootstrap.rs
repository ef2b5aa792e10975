//! The op `bootstrap`: means of paired columns, their difference, and its confidence interval.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::language_model::missing_column;
use super::{Cell, ColumnType, Context, Op, OpError, Outputs, Problem, Table};
use crate::config::{Columns, Interface, Param, ParamKind, Port};
use crate::graph::Node;
use crate::metrics::{mean, paired_difference};

pub struct Bootstrap;

#[derive(Debug, Deserialize)]
struct Params {
    metrics: BTreeMap<String, Vec<String>>,
    resamples: usize,
}

const CONFIDENCE: f64 = 0.95;

impl Op for Bootstrap {
    fn name(&self) -> &'static str {
        "bootstrap"
    }

    fn version(&self) -> u32 {
        1
    }

    fn interface(&self) -> Interface {
        let pair = ParamKind::Map(Box::new(ParamKind::List(Box::new(ParamKind::Text))));
        let params = [
            (
                "metrics",
                Param::required(
                    pair,
                    "Metric name to its two columns: `f1: [base_f1, tuned_f1]`. Rows where either is null do not count.",
                ),
            ),
            (
                "resamples",
                Param::default(
                    ParamKind::Integer {
                        min: Some(1),
                        max: None,
                    },
                    10_000,
                    "Draws of the bootstrap.",
                ),
            ),
        ];
        let summary = Port::table(
            "One row per metric: rows, both means, their difference and its 95 % interval.",
            &[
                ("metric", "VARCHAR"),
                ("rows", "BIGINT"),
                ("base", "DOUBLE"),
                ("tuned", "DOUBLE"),
                ("difference", "DOUBLE"),
                ("low", "DOUBLE"),
                ("high", "DOUBLE"),
            ],
        );
        Interface {
            doc: "Compares paired columns by their means, with bootstrap intervals.".to_owned(),
            params: params
                .into_iter()
                .map(|(name, param)| (name.to_owned(), param))
                .collect(),
            inputs: BTreeMap::from([(
                "rows".to_owned(),
                Port::table("Rows with paired columns.", &[("id", "VARCHAR")]),
            )]),
            outputs: BTreeMap::from([("rows".to_owned(), summary)]),
            open_inputs: false,
        }
    }

    fn seeded(&self, _: &Node) -> bool {
        true
    }

    fn columns(
        &self,
        node: &Node,
        inputs: &BTreeMap<String, Option<Columns>>,
    ) -> Result<BTreeMap<String, Option<Columns>>, Vec<Problem>> {
        let mut problems = Vec::new();
        let metrics = node
            .params
            .get("metrics")
            .and_then(serde_json::Value::as_object);
        for (name, pair) in metrics.into_iter().flatten() {
            let at = format!("metrics.{name}");
            let names: Vec<_> = pair
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(serde_json::Value::as_str)
                .collect();
            if names.len() != 2 {
                let help = Some("write `[before, after]`".to_owned());
                problems.push(Problem {
                    at,
                    message: format!("a metric takes two columns, not {}", names.len()),
                    help,
                });
            } else if let Some(columns) = inputs.get("rows").and_then(Option::as_ref) {
                let missing = names
                    .into_iter()
                    .filter(|name| !columns.iter().any(|(column, _)| column == name));
                problems.extend(missing.map(|name| missing_column(&at, name, columns)));
            }
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let outputs = self.interface().outputs;
        Ok(outputs
            .into_iter()
            .map(|(name, port)| (name, Some(port.columns)))
            .collect())
    }
}

pub fn run(context: &mut Context) -> Result<Outputs, OpError> {
    let params: Params = context.params()?;
    let mut summary = Table::new(&[
        ("metric", ColumnType::Text),
        ("rows", ColumnType::Integer),
        ("base", ColumnType::Double),
        ("tuned", ColumnType::Double),
        ("difference", ColumnType::Double),
        ("low", ColumnType::Double),
        ("high", ColumnType::Double),
    ]);
    for (name, pair) in &params.metrics {
        let [base, tuned] = [0, 1].map(|at| format!("\"{}\"", pair[at].replace('"', "\"\"")));
        let rows = context.query(&format!(
            "select {base}::double, {tuned}::double from rows where {base} is not null and {tuned} is not null order by id"
        ))?;
        let column = |at: usize| -> Vec<f64> {
            rows.rows
                .iter()
                .filter_map(|row| row[at].as_f64())
                .collect()
        };
        let (base, tuned) = (column(0), column(1));
        let difference = paired_difference(
            &base,
            &tuned,
            params.resamples,
            CONFIDENCE,
            context.node.seed,
        );
        let (difference, interval) = difference.map_or((None, None), |(difference, interval)| {
            (Some(difference), Some(interval))
        });
        context.report(&format!("{name}_base"), mean(&base));
        context.report(&format!("{name}_tuned"), mean(&tuned));
        summary.rows.push(vec![
            Cell::from(name.as_str()),
            (base.len() as i64).into(),
            mean(&base).into(),
            mean(&tuned).into(),
            difference.into(),
            interval.map(|interval| interval.low).into(),
            interval.map(|interval| interval.high).into(),
        ]);
    }
    context.give_table("rows", &summary, true)?;
    context.finish()
}
