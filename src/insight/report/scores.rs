//! How good the answers are: means with intervals for all rows and by type, and the rows that say most.

use std::collections::BTreeMap;

use serde::Serialize;

use super::Card;
use super::samples::{Samples, samples};
use crate::cache::{CacheError, quote};
use crate::insight::Tables;
use crate::insight::chart::{self, Estimate};
use crate::insight::numbers::Decimals;
use crate::insight::roles::Roles;
use crate::insight::scores::{Metric, Scored};
use crate::metrics::{Interval, mean, mean_interval, paired_difference};
use crate::ui::{count, plural};

const CONFIDENCE: f64 = 0.95;
/// The totals are read where an op has made them; for types fewer draws than it makes are enough.
const RESAMPLES: usize = 1_000;
/// Draws from fewer rows say nothing about how sure their mean is.
const FEWEST: usize = 5;

#[derive(Serialize)]
pub(super) struct Section {
    stage: String,
    note: String,
    metrics: Vec<String>,
    groups: Vec<Group>,
    chart: Option<Card>,
    samples: Vec<Samples>,
}

/// All rows, or those of one type.
#[derive(Serialize)]
struct Group {
    label: String,
    rows: String,
    cells: Vec<Option<Cell>>,
}

#[derive(Serialize)]
struct Cell {
    /// `26.8 → 30.7`, or `30.7`.
    value: String,
    /// `+3.9 [3.2, 4.6]`, or `[29.1, 32.2]`.
    interval: String,
    /// `better` or `worse` where the interval of a difference is clear of zero.
    class: &'static str,
}

/// Means of a metric over some rows.
#[derive(Clone, Copy)]
struct Means {
    /// Of the base, where two models are compared.
    before: Option<f64>,
    after: f64,
    difference: f64,
    /// Of the difference, or of the one mean; `None` for fewer than [`FEWEST`] rows.
    interval: Option<Interval>,
}

/// `None` where the cache no longer has the table.
pub(super) fn section(
    tables: &Tables,
    roles: &Roles,
    scored: &Scored,
) -> Result<Option<Section>, CacheError> {
    let columns = |metric: &Metric| {
        let mut columns: Vec<String> = metric.base.iter().cloned().collect();
        columns.push(metric.value.clone());
        columns
    };
    let all: Vec<String> = scored.metrics.iter().flat_map(columns).collect();
    let names: Vec<&str> = all.iter().map(String::as_str).collect();
    if !tables.has(&scored.table, &["id"]) || !tables.has(&scored.table, &names) {
        return Ok(None);
    }
    let by_group = read(tables, roles, scored, &all)?;
    let mut total: Vec<&Row> = by_group.iter().flat_map(|(_, rows)| rows).collect();
    // In the order in which the ops read them: the draws are by position.
    total.sort_by(|a, b| a.id.cmp(&b.id));
    let mut means = vec![means(scored, &total)];
    if let Some(known) = totals(tables, scored)? {
        means[0] = known;
    }
    let mut labels = vec![("all".to_owned(), total.len())];
    if by_group.len() > 1 {
        for (label, rows) in &by_group {
            means.push(self::means(scored, &rows.iter().collect::<Vec<_>>()));
            labels.push((label.clone(), rows.len()));
        }
    }
    let decimals: Vec<Decimals> = means[0]
        .iter()
        .map(|means| {
            Decimals::of(
                means
                    .iter()
                    .flat_map(|means| means.before.into_iter().chain([means.after])),
            )
        })
        .collect();
    let groups = labels
        .iter()
        .zip(&means)
        .map(|((label, rows), means)| Group {
            label: label.clone(),
            rows: count(*rows as u64),
            cells: means
                .iter()
                .zip(&decimals)
                .map(|(means, decimals)| means.map(|means| cell(means, *decimals)))
                .collect(),
        });
    let main = scored.main_metric();
    let place = scored.metrics.iter().position(|metric| metric == main);
    let place = place.unwrap_or_default();
    let estimate = |((label, _), means): (&(String, usize), &Vec<Option<Means>>)| {
        let means = means[place].filter(|means| means.before.is_some())?;
        Some(Estimate {
            label: label.clone(),
            value: means.difference,
            interval: means.interval?,
            note: decimals[place].difference(means.difference, means.interval?),
        })
    };
    let estimates: Vec<Estimate> = labels.iter().zip(&means).filter_map(estimate).collect();
    let by = roles.group.as_deref().unwrap_or("group").replace('_', " ");
    let chart = (estimates.len() > 1).then(|| {
        let title = format!("Gain in {} by {by}", label(&main.name));
        Card {
            note: "difference of means with its 95 % bootstrap interval; pale where zero is inside"
                .to_owned(),
            svg: chart::intervals(&title, "after − before", &estimates),
            title,
        }
    });
    Ok(Some(Section {
        stage: scored.stage.clone(),
        note: format!(
            "{}; before → after, and the difference of means with its 95 % bootstrap interval over paired rows (none below {FEWEST})",
            plural(total.len() as u64, "row")
        ),
        metrics: scored
            .metrics
            .iter()
            .map(|metric| label(&metric.name))
            .collect(),
        groups: groups.collect(),
        chart,
        samples: samples(tables, scored)?,
    }))
}

/// What the op `bootstrap` found for all rows, in the order of the metrics.
fn totals(tables: &Tables, scored: &Scored) -> Result<Option<Vec<Option<Means>>>, CacheError> {
    let columns = ["metric", "base", "tuned", "difference", "low", "high"];
    let Some(summary) = scored
        .summary
        .as_ref()
        .filter(|summary| tables.has(summary, &columns))
    else {
        return Ok(None);
    };
    let sql = format!("select {} from summary", columns.join(", "));
    let rows = tables.query(&[("summary", summary)], &sql)?.rows;
    let of = |metric: &Metric| {
        let row = rows
            .iter()
            .find(|row| row[0].as_str() == Some(&metric.name))?;
        Some(Means {
            before: Some(row[1].as_f64()?),
            after: row[2].as_f64()?,
            difference: row[3].as_f64()?,
            interval: Some(Interval {
                low: row[4].as_f64()?,
                high: row[5].as_f64()?,
            }),
        })
    };
    Ok(Some(scored.metrics.iter().map(of).collect()))
}

/// What people call a metric; the scale where it is known.
pub fn label(metric: &str) -> String {
    match metric {
        "f1" => "F1 (0–100)".to_owned(),
        "exact_match" => "exact match (%)".to_owned(),
        other => other.replace('_', " "),
    }
}

/// The scores of a row, in the order of the columns asked for.
struct Row {
    id: String,
    scores: Vec<Option<f64>>,
}

/// Rows by type, the most frequent first; one nameless group where there are no types.
fn read(
    tables: &Tables,
    roles: &Roles,
    scored: &Scored,
    columns: &[String],
) -> Result<Vec<(String, Vec<Row>)>, CacheError> {
    let scores: Vec<String> = columns
        .iter()
        .map(|column| format!("scored.{}::double", quote(column)))
        .collect();
    let mut inputs = vec![("scored", scored.table.as_str())];
    let (group, join) = match (&roles.group, &roles.source) {
        (Some(group), Some(source)) => {
            inputs.push(("source", source));
            (
                format!(
                    "coalesce(nullif(source.{}::varchar, ''), '(none)')",
                    quote(group)
                ),
                "left join source on source.id = scored.id",
            )
        }
        _ => ("''".to_owned(), ""),
    };
    let sql = format!(
        "select scored.id::varchar, {group}, {} from scored {join} order by scored.id",
        scores.join(", ")
    );
    let mut groups: BTreeMap<String, Vec<Row>> = BTreeMap::new();
    for cells in tables.query(&inputs, &sql)?.rows {
        let row = Row {
            id: cells[0].as_str().unwrap_or_default().to_owned(),
            scores: cells[2..].iter().map(|cell| cell.as_f64()).collect(),
        };
        let name = cells[1].as_str().unwrap_or_default().to_owned();
        groups.entry(name).or_default().push(row);
    }
    let mut groups: Vec<_> = groups.into_iter().collect();
    groups.sort_by_key(|(_, rows)| std::cmp::Reverse(rows.len()));
    Ok(groups)
}

/// The values of the metric at `place` before and after, of rows that have both; before is empty for a single column.
fn pairs(scored: &Scored, place: usize, rows: &[&Row]) -> (Vec<f64>, Vec<f64>) {
    let before: usize = scored.metrics[..place]
        .iter()
        .map(|metric| 1 + usize::from(metric.base.is_some()))
        .sum();
    if scored.metrics[place].base.is_none() {
        let values = rows.iter().filter_map(|row| row.scores[before]);
        return (Vec::new(), values.collect());
    }
    let both = |row: &&Row| Some((row.scores[before]?, row.scores[before + 1]?));
    rows.iter().filter_map(both).unzip()
}

/// The means of every metric over some rows; `None` where no row has it.
fn means(scored: &Scored, rows: &[&Row]) -> Vec<Option<Means>> {
    let of = |place: usize| {
        let (before, after) = pairs(scored, place, rows);
        let is_single = scored.metrics[place].base.is_none();
        let (difference, interval) = if is_single {
            (
                0.0,
                mean_interval(&after, RESAMPLES, CONFIDENCE, scored.seed)?,
            )
        } else {
            paired_difference(&before, &after, RESAMPLES, CONFIDENCE, scored.seed)?
        };
        Some(Means {
            before: (!is_single).then(|| mean(&before)),
            after: mean(&after),
            difference,
            interval: (after.len() >= FEWEST).then_some(interval),
        })
    };
    (0..scored.metrics.len()).map(of).collect()
}

fn cell(means: Means, decimals: Decimals) -> Cell {
    let after = decimals.plain(means.after);
    match (means.before, means.interval) {
        (Some(before), interval) => Cell {
            value: format!("{} → {after}", decimals.plain(before)),
            interval: match interval {
                Some(interval) => decimals.difference(means.difference, interval),
                None => decimals.signed(means.difference),
            },
            class: interval.map_or("", verdict),
        },
        (None, interval) => Cell {
            value: after,
            interval: interval.map_or_else(String::new, |interval| {
                format!(
                    "[{}, {}]",
                    decimals.plain(interval.low),
                    decimals.plain(interval.high)
                )
            }),
            class: "",
        },
    }
}

pub(in crate::insight) fn verdict(interval: Interval) -> &'static str {
    if interval.low > 0.0 {
        "better"
    } else if interval.high < 0.0 {
        "worse"
    } else {
        ""
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scored(base: Option<&str>) -> Scored {
        Scored {
            stage: "evaluate".to_owned(),
            table: "evaluate.samples.rows".to_owned(),
            metrics: vec![Metric {
                name: "f1".to_owned(),
                base: base.map(str::to_owned),
                value: "tuned_f1".to_owned(),
            }],
            seed: 1,
            summary: None,
        }
    }

    fn cell_of(scored: &Scored, rows: &[&[Option<f64>]]) -> Cell {
        let rows: Vec<Row> = rows
            .iter()
            .map(|scores| Row {
                id: String::new(),
                scores: scores.to_vec(),
            })
            .collect();
        let means = means(scored, &rows.iter().collect::<Vec<_>>())[0].unwrap();
        cell(means, Decimals::of([means.after]))
    }

    #[test]
    fn a_few_rows_have_no_interval() {
        let both = scored(Some("base_f1"));
        let row: &[Option<f64>] = &[Some(10.0), Some(12.0)];
        let lone: &[Option<f64>] = &[Some(10.0), None];
        let many = cell_of(&both, &[row, row, row, row, row, lone]);
        assert_eq!(
            (many.value.as_str(), many.interval.as_str(), many.class),
            ("10.0 → 12.0", "+2.0 [2.0, 2.0]", "better")
        );
        let few = cell_of(&both, &[row, row, row, row]);
        assert_eq!((few.interval.as_str(), few.class), ("+2.0", ""));
        let lone: &[Option<f64>] = &[Some(12.0)];
        let single = cell_of(&scored(None), &[lone; 5]);
        assert_eq!(
            (single.value.as_str(), single.interval.as_str()),
            ("12.0", "[12.0, 12.0]")
        );
    }
}
