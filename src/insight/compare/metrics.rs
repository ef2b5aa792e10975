//! Scores of the same rows in several runs: means, paired differences with bootstrap intervals, rows that changed most.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::cache::CacheError;
use crate::insight::Tables;
use crate::insight::scores::{Metric, Scored, scored};
use crate::metrics::{Interval, mean, paired_difference};
use crate::runs::Run;

const RESAMPLES: usize = 10_000;
const CONFIDENCE: f64 = 0.95;
/// Rows shown of each kind.
const SAMPLES: usize = 5;

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MetricRow {
    /// The stage that scores.
    pub stage: String,
    /// `f1`.
    pub metric: String,
    /// The column of the table: `tuned_f1`.
    pub column: String,
    /// Means over the rows of each run.
    pub values: Vec<Option<f64>>,
    /// Against the first run, over the rows that both have; `None` for the first.
    pub changes: Vec<Option<Change>>,
}

/// A difference of means over paired rows, with its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Change {
    pub difference: f64,
    pub low: f64,
    pub high: f64,
    pub rows: usize,
}

impl Change {
    pub fn interval(&self) -> Interval {
        Interval {
            low: self.low,
            high: self.high,
        }
    }
}

/// A final number without rows behind it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Number {
    /// `node.name`.
    pub name: String,
    pub values: Vec<Option<f64>>,
}

/// A row as the first run and the last scored it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Sample {
    pub id: String,
    pub question: String,
    pub reference: String,
    pub metric: String,
    pub scores: [f64; 2],
    pub answers: [String; 2],
}

/// A table with scores in one run and its namesake in another.
fn namesake<'a>(others: &'a [Scored], stage: &str) -> Option<&'a Scored> {
    others.iter().find(|other| other.stage == stage)
}

pub(super) fn rows(tables: &[Tables]) -> Result<Vec<MetricRow>, CacheError> {
    let by_run: Vec<Vec<Scored>> = tables.iter().map(|tables| scored(tables.run())).collect();
    let mut rows = Vec::new();
    let mut asked: Vec<(&str, &Metric, &String)> = Vec::new();
    for scored in by_run.iter().flatten() {
        for metric in &scored.metrics {
            for column in metric.base.iter().chain([&metric.value]) {
                let entry = (scored.stage.as_str(), metric, column);
                if !asked
                    .iter()
                    .any(|known| known.0 == entry.0 && known.2 == entry.2)
                {
                    asked.push(entry);
                }
            }
        }
    }
    for (stage, metric, column) in asked {
        let mut values: Vec<Option<Vec<(String, f64)>>> = Vec::new();
        for (tables, scored) in tables.iter().zip(&by_run) {
            let found =
                namesake(scored, stage).filter(|scored| tables.has(&scored.table, &["id", column]));
            values.push(
                found
                    .map(|scored| scored.values(tables, column))
                    .transpose()?,
            );
        }
        let seed = by_run
            .iter()
            .find_map(|scored| namesake(scored, stage))
            .map_or(0, |scored| scored.seed);
        let first = values[0].clone();
        let changes = values.iter().enumerate().map(|(index, other)| {
            let (first, other) = (first.as_ref()?, other.as_ref()?);
            (index > 0).then(|| change(first, other, seed)).flatten()
        });
        let means = values.iter().map(|values| {
            let values: Vec<f64> = values.as_ref()?.iter().map(|(_, value)| *value).collect();
            (!values.is_empty()).then(|| mean(&values))
        });
        rows.push(MetricRow {
            stage: stage.to_owned(),
            metric: metric.name.clone(),
            column: column.clone(),
            changes: changes.collect(),
            values: means.collect(),
        });
    }
    Ok(rows)
}

/// The change over rows that both runs scored, by id.
fn change(first: &[(String, f64)], other: &[(String, f64)], seed: u64) -> Option<Change> {
    let by_id: BTreeMap<&str, f64> = other
        .iter()
        .map(|(id, value)| (id.as_str(), *value))
        .collect();
    let (before, after): (Vec<f64>, Vec<f64>) = first
        .iter()
        .filter_map(|(id, before)| Some((*before, *by_id.get(id.as_str())?)))
        .unzip();
    let (difference, interval) = paired_difference(&before, &after, RESAMPLES, CONFIDENCE, seed)?;
    Some(Change {
        difference,
        low: interval.low,
        high: interval.high,
        rows: before.len(),
    })
}

/// Final numbers that are not the same in all runs, without those that are means of compared scores.
pub(super) fn numbers(runs: &[Run], compared: &[MetricRow]) -> Vec<Number> {
    let mut names: Vec<&String> = runs
        .iter()
        .flat_map(|run| run.view.head.metrics.keys())
        .collect();
    names.sort();
    names.dedup();
    // `bootstrap` and `score` report means of the scores compared above.
    let is_compared = |name: &str| {
        let Some((node, _)) = name.rsplit_once('.') else {
            return false;
        };
        let op = runs.iter().find_map(|run| run.graph.node(node));
        op.is_some_and(|node| {
            ["bootstrap", "score"].contains(&node.op.as_str())
                && compared
                    .iter()
                    .any(|row| row.stage == node.stage || row.stage == node.name)
        })
    };
    names
        .into_iter()
        .filter(|name| !is_compared(name))
        .map(|name| Number {
            name: name.clone(),
            values: runs
                .iter()
                .map(|run| run.view.head.metrics.get(name).copied())
                .collect(),
        })
        .filter(|number| number.values.iter().any(|value| *value != number.values[0]))
        .collect()
}

/// Rows of the first table with scores whose main score went up most and down most from the first run to the last.
pub(super) fn samples(tables: &[Tables]) -> Result<(Vec<Sample>, Vec<Sample>), CacheError> {
    let (Some(first), Some(last)) = (tables.first(), tables.last()) else {
        return Ok(Default::default());
    };
    let (before, after) = (scored(first.run()), scored(last.run()));
    let Some((before, after)) = before
        .first()
        .and_then(|scored| Some((scored, namesake(&after, &scored.stage)?)))
    else {
        return Ok(Default::default());
    };
    let metric = before.main_metric();
    let has = |tables: &Tables, scored: &Scored| tables.has(&scored.table, &["id", &metric.value]);
    if !has(first, before) || !has(last, after) {
        return Ok(Default::default());
    }
    let old = before.values(first, &metric.value)?;
    let new: BTreeMap<String, f64> = after.values(last, &metric.value)?.into_iter().collect();
    let mut changed: Vec<(&str, [f64; 2])> = old
        .iter()
        .filter_map(|(id, old)| Some((id.as_str(), [*old, *new.get(id)?])))
        .filter(|(_, [old, new])| old != new)
        .collect();
    changed.sort_by(|(a, x), (b, y)| (y[1] - y[0]).total_cmp(&(x[1] - x[0])).then(a.cmp(b)));
    let up = changed.iter().take_while(|(_, [old, new])| new > old);
    let down = changed.iter().rev().take_while(|(_, [old, new])| new < old);
    let read = |picked: Vec<&(&str, [f64; 2])>| -> Result<Vec<Sample>, CacheError> {
        picked
            .into_iter()
            .map(|(id, scores)| {
                let rows = [row(first, before, id)?, row(last, after, id)?];
                Ok(sample(id, *scores, metric, &rows))
            })
            .collect()
    };
    Ok((
        read(up.take(SAMPLES).collect())?,
        read(down.take(SAMPLES).collect())?,
    ))
}

fn row(tables: &Tables, scored: &Scored, id: &str) -> Result<Map<String, Value>, CacheError> {
    let sql = format!(
        "select * from scored where id::varchar = '{}'",
        id.replace('\'', "''")
    );
    let mut rows = tables.objects(&[("scored", &scored.table)], &sql)?;
    Ok(rows.pop().unwrap_or_default())
}

fn sample(id: &str, scores: [f64; 2], metric: &Metric, rows: &[Map<String, Value>; 2]) -> Sample {
    let text = |row: &Map<String, Value>, column: &str| {
        row.get(column)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let (_, prediction) = metric.predictions();
    Sample {
        id: id.to_owned(),
        question: text(&rows[0], "question"),
        reference: text(&rows[0], "reference"),
        metric: metric.name.clone(),
        scores,
        answers: [text(&rows[0], &prediction), text(&rows[1], &prediction)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_rows_that_both_have_are_compared() {
        let scores = |values: &[(&str, f64)]| -> Vec<(String, f64)> {
            values
                .iter()
                .map(|(id, value)| ((*id).to_owned(), *value))
                .collect()
        };
        let first = scores(&[("a", 1.0), ("b", 2.0), ("c", 9.0)]);
        let other = scores(&[("b", 4.0), ("a", 3.0), ("d", 0.0)]);
        let change = change(&first, &other, 1).unwrap();
        assert_eq!((change.difference, change.rows), (2.0, 2));
        assert_eq!((change.low, change.high), (2.0, 2.0));
        assert_eq!(super::change(&first, &[], 1), None);
    }
}
