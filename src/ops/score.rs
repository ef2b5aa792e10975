//! The op `score`: exact match and F1 of predictions (SQuAD v1.1), by row and in total with bootstrap intervals.

use std::collections::BTreeMap;

use duckdb::{Connection, ToSql, appender_params_from_iter};
use rayon::prelude::*;
use serde::Deserialize;
use serde_json::Value;

use super::{Cell, ColumnType, Context, Op, OpError, Outputs, Problem, Table, checker};
use crate::cache::quote;
use crate::config::{Columns, Interface, Param, ParamKind, Port, suggest};
use crate::graph::Node;
use crate::metrics;

pub struct Score;

#[derive(Debug, Deserialize)]
struct Params {
    prediction: String,
    reference: String,
    group: Option<String>,
    resamples: usize,
    confidence: f64,
}

/// The slice that holds every row.
const ALL: &str = "all";

/// The score, 0 to 1, of a prediction against the references, of which the best counts.
type Measure = fn(&str, &[String]) -> f64;

/// What is measured, by column.
const MEASURES: [(&str, Measure); 2] = [
    ("exact_match", metrics::exact_match_best),
    ("f1", metrics::f1_best),
];

/// A row's scores in percent, in the order of [`MEASURES`].
type Scores = [f64; MEASURES.len()];

impl Op for Score {
    fn name(&self) -> &'static str {
        "score"
    }

    fn version(&self) -> u32 {
        1
    }

    fn interface(&self) -> Interface {
        let number = |min, max| ParamKind::Number {
            min: Some(min),
            max: Some(max),
        };
        let params = [
            (
                "prediction",
                Param::default(
                    ParamKind::Text,
                    "prediction",
                    "The column with the predicted text.",
                ),
            ),
            (
                "reference",
                Param::default(
                    ParamKind::Text,
                    "reference",
                    "The column with the right text, or a list of right texts of which the best counts.",
                ),
            ),
            (
                "group",
                Param::optional(
                    ParamKind::Text,
                    "A column by whose values the summary is also given.",
                ),
            ),
            (
                "resamples",
                Param::default(
                    ParamKind::Integer {
                        min: Some(1),
                        max: Some(1_000_000),
                    },
                    1000,
                    "Draws of the bootstrap.",
                ),
            ),
            (
                "confidence",
                Param::default(
                    number(0.5, 0.9999),
                    0.95,
                    "The probability of the intervals.",
                ),
            ),
        ];
        let id = [("id", "VARCHAR")];
        Interface {
            doc: "Scores predictions against references: SQuAD v1.1 exact match and F1, from 0 to 100.".to_owned(),
            params: params.into_iter().map(|(name, param)| (name.to_owned(), param)).collect(),
            inputs: BTreeMap::from([
                ("rows".to_owned(), Port::table("Predictions with their references.", &id)),
                ("baseline".to_owned(), Port::table("Other predictions for the same ids; the gain over them is given.", &id).optional()),
            ]),
            outputs: BTreeMap::from([
                ("rows".to_owned(), Port { columns: scored_columns(), ..Port::table("The rows of the input with their scores.", &[]) }),
                ("summary".to_owned(), Port { columns: summary_columns(), ..Port::table("Means with intervals: of all rows, then by group.", &[]) }),
            ]),
            open_inputs: false,
        }
    }

    /// The bootstrap draws by it.
    fn seeded(&self, _: &Node) -> bool {
        true
    }

    fn columns(
        &self,
        node: &Node,
        inputs: &BTreeMap<String, Option<Columns>>,
    ) -> Result<BTreeMap<String, Option<Columns>>, Vec<Problem>> {
        let text = |name: &str| node.params.get(name).and_then(Value::as_str);
        let mut problems = Vec::new();
        for (port, needed) in [
            ("rows", &["prediction", "reference", "group"][..]),
            ("baseline", &["prediction"]),
        ] {
            let Some(Some(columns)) = inputs.get(port) else {
                continue;
            };
            let names = || columns.iter().map(|(name, _)| name.as_str());
            for param in needed {
                let Some(wanted) = text(param)
                    .filter(|wanted| !names().any(|name| name.eq_ignore_ascii_case(wanted)))
                else {
                    continue;
                };
                let guess = suggest::closest(wanted, names())
                    .map(|name| format!("did you mean `{name}`? "))
                    .unwrap_or_default();
                problems.push(Problem {
                    at: (*param).to_owned(),
                    message: format!("the input `{port}` has no column `{wanted}`"),
                    help: Some(format!("{guess}it has {}", suggest::list(names()))),
                });
            }
            let taken = MEASURES
                .iter()
                .find(|(score, _)| names().any(|name| name == *score));
            if let ("rows", Some((taken, _))) = (port, taken) {
                let help = Some(
                    "score a table that has no scores yet, or rename the column with `sql`"
                        .to_owned(),
                );
                problems.push(Problem {
                    at: "inputs.rows".to_owned(),
                    message: format!("the input `rows` has a column `{taken}` already"),
                    help,
                });
            }
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let rows = inputs.get("rows").cloned().flatten().map(|columns| {
            columns
                .into_iter()
                .chain(scored_columns().into_iter().skip(1))
                .collect()
        });
        Ok(BTreeMap::from([
            ("rows".to_owned(), rows),
            ("summary".to_owned(), Some(summary_columns())),
        ]))
    }
}

/// The id and the scores of a row.
fn scored_columns() -> Columns {
    let scores = MEASURES.map(|(name, _)| (name.to_owned(), "DOUBLE".to_owned()));
    [("id".to_owned(), "VARCHAR".to_owned())]
        .into_iter()
        .chain(scores)
        .collect()
}

fn summary_columns() -> Columns {
    summary_table()
        .columns
        .into_iter()
        .map(|(name, kind)| (name, kind.sql().to_owned()))
        .collect()
}

fn summary_table() -> Table {
    let mut table = Table::new(&[("slice", ColumnType::Text), ("n", ColumnType::Integer)]);
    for (score, _) in MEASURES {
        for part in ["", "_low", "_high", "_gain", "_gain_low", "_gain_high"] {
            table
                .columns
                .push((format!("{score}{part}"), ColumnType::Double));
        }
    }
    table
}

/// A row with the scores of its prediction and of the baseline's.
struct Scored {
    id: String,
    group: Option<String>,
    scores: Scores,
    baseline: Option<Scores>,
}

pub fn run(ctx: &mut Context) -> Result<Outputs, OpError> {
    let params: Params = ctx.params()?;
    let with_baseline = ctx.inputs.contains_key("baseline");
    let table = ctx.with_inputs(|connection| read(connection, &params, with_baseline))?;
    if table.rows.is_empty() {
        return Err(OpError::with_help(
            "there are no rows to score",
            "see what the step before gave with `flow data`",
        ));
    }
    ctx.check_cancelled()?;
    let rows: Vec<Scored> = table
        .rows
        .par_iter()
        .map(|row| score(row))
        .collect::<Result<_, _>>()?;
    let summary = summarize(&rows, &params, ctx.node.seed);
    for (index, (name, _)) in summary.columns.iter().enumerate().skip(2) {
        if let Some(value) = summary.rows[0][index].as_f64() {
            ctx.report(name, value);
        }
    }
    ctx.report("rows", rows.len() as f64);
    let missing = rows
        .iter()
        .filter(|row| with_baseline && row.baseline.is_none())
        .count();
    if missing > 0 {
        ctx.warn(format!(
            "{missing} of {} rows have no baseline prediction; the gain is over the others",
            rows.len()
        ));
    }
    ctx.give_table("summary", &summary, true)?;

    // Joined in the database, where every column keeps its type.
    std::fs::create_dir_all(&ctx.scratch)?;
    let scores = ctx.scratch.join("scores.parquet");
    write(&rows, &scores)?;
    let scores = format!("'{}'", scores.to_string_lossy().replace('\'', "''"));
    ctx.give_query("rows", &format!("select rows.*, scores.* exclude (id) from rows join read_parquet({scores}) as scores using (id)"), &[])?;
    ctx.finish()
}

/// Columns: id, prediction, references as JSON, group, the baseline's prediction.
fn read(connection: &Connection, params: &Params, with_baseline: bool) -> Result<Table, OpError> {
    let (prediction, reference) = (quote(&params.prediction), quote(&params.reference));
    let kind: String = connection.query_row(
        &format!("select any_value(typeof({reference})) from rows"),
        [],
        |row| Ok(row.get::<_, Option<String>>(0)?.unwrap_or_default()),
    )?;
    let references = if kind.ends_with(']') {
        format!("{reference}::varchar[]")
    } else {
        format!("[{reference}::varchar]")
    };
    let group = params.group.as_ref().map_or_else(
        || "null".to_owned(),
        |group| format!("rows.{}::varchar", quote(group)),
    );
    let (other, join) = if with_baseline {
        (
            format!(
                "coalesce(baseline.{prediction}::varchar, case when baseline.id is null then null else '' end)"
            ),
            " left join baseline using (id)",
        )
    } else {
        ("null".to_owned(), "")
    };
    let repeated: u64 = connection.query_row(
        "select count(*) - count(distinct id) from rows",
        [],
        |row| row.get(0),
    )?;
    if repeated > 0 {
        return Err(OpError::with_help(
            format!("{repeated} rows have the id of another"),
            "every row that is scored needs an id of its own",
        ));
    }
    let references = references.replace(&reference, &format!("rows.{reference}"));
    Table::query(
        connection,
        &format!(
            "select rows.id, rows.{prediction}::varchar, to_json({references})::varchar, {group}, {other}::varchar from rows{join} order by rows.id"
        ),
    )
}

fn score(row: &[Cell]) -> Result<Scored, OpError> {
    let text = |index: usize| row[index].as_str();
    let id = text(0).unwrap_or_default().to_owned();
    let references: Vec<Option<String>> = serde_json::from_str(text(2).unwrap_or("[]"))
        .map_err(|error| OpError::new(format!("the references of `{id}`: {error}")))?;
    let references: Vec<String> = references
        .into_iter()
        .map(Option::unwrap_or_default)
        .collect();
    let of =
        |prediction: &str| MEASURES.map(|(_, measure)| 100.0 * measure(prediction, &references));
    Ok(Scored {
        scores: of(text(1).unwrap_or_default()),
        baseline: text(4).map(of),
        group: text(3).map(str::to_owned),
        id,
    })
}

/// A row for all rows, then one for each group in order of its name.
fn summarize(rows: &[Scored], params: &Params, seed: u64) -> Table {
    let mut slices: BTreeMap<Option<&str>, Vec<&Scored>> = BTreeMap::new();
    slices.insert(None, rows.iter().collect());
    if params.group.is_some() {
        for row in rows {
            slices
                .entry(Some(row.group.as_deref().unwrap_or("(none)")))
                .or_default()
                .push(row);
        }
    }
    let mut table = summary_table();
    for (name, slice) in slices {
        let mut cells = vec![
            Cell::from(name.unwrap_or(ALL)),
            Cell::Integer(slice.len() as i64),
        ];
        for index in 0..MEASURES.len() {
            let scores: Vec<f64> = slice.iter().map(|row| row.scores[index]).collect();
            let interval =
                metrics::mean_interval(&scores, params.resamples, params.confidence, seed);
            cells.push(metrics::mean(&scores).into());
            cells.extend([
                interval.map(|interval| interval.low).into(),
                interval.map(|interval| interval.high).into(),
            ]);
            let (before, after): (Vec<f64>, Vec<f64>) = slice
                .iter()
                .filter_map(|row| Some((row.baseline?[index], row.scores[index])))
                .unzip();
            let gain = metrics::paired_difference(
                &before,
                &after,
                params.resamples,
                params.confidence,
                seed,
            );
            cells.push(gain.map(|(mean, _)| mean).into());
            cells.extend([
                gain.map(|(_, interval)| interval.low).into(),
                gain.map(|(_, interval)| interval.high).into(),
            ]);
        }
        table.rows.push(cells);
    }
    table
}

fn write(rows: &[Scored], path: &std::path::Path) -> Result<(), OpError> {
    let connection = checker::open()?;
    let columns: Vec<_> = scored_columns()
        .iter()
        .map(|(name, kind)| format!("{} {kind}", quote(name)))
        .collect();
    connection.execute_batch(&format!("create table scores ({})", columns.join(", ")))?;
    let mut appender = connection.appender("scores")?;
    for row in rows {
        let scores = row.scores.iter().map(|score| score as &dyn ToSql);
        appender.append_row(appender_params_from_iter(
            std::iter::once(&row.id as &dyn ToSql).chain(scores),
        ))?;
    }
    appender.flush()?;
    drop(appender);
    let path = path.to_string_lossy().replace('\'', "''");
    Ok(connection.execute_batch(&format!("copy scores to '{path}' (format parquet)"))?)
}

#[cfg(test)]
mod tests;
