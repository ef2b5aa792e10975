//! A comparison as a page.

use serde::Serialize;

use super::{Comparison, Dataset, Sample};
use crate::insight::InsightError;
use crate::insight::chart::{self, Series};
use crate::insight::numbers::Decimals;
use crate::insight::page;
use crate::insight::report::{Card, label, state, verdict};
use crate::ui::{count, number, plural, seconds};

#[derive(Serialize)]
struct Page<'a> {
    comparison: &'a Comparison,
    runs: Vec<Head>,
    rows: Vec<Line>,
    metrics: Vec<Line>,
    numbers: Vec<Line>,
    curves: Vec<Card>,
    samples: Vec<(&'static str, Vec<SampleLine<'a>>)>,
    datasets: Vec<(String, &'a Dataset)>,
}

#[derive(Serialize)]
struct Head {
    /// A, B, C.
    letter: String,
    id: String,
    state: &'static str,
    about: String,
}

/// A name and a cell for each run: what it says, a remark, how it is coloured.
#[derive(Serialize)]
struct Line {
    name: String,
    cells: Vec<(String, String, &'static str)>,
}

#[derive(Serialize)]
struct SampleLine<'a> {
    sample: &'a Sample,
    scores: String,
}

/// The letter a run goes by: A for the first.
pub fn letter(index: usize) -> String {
    char::from_u32('A' as u32 + index as u32)
        .filter(char::is_ascii_uppercase)
        .map_or_else(|| format!("run {}", index + 1), String::from)
}

/// Draws `compare.html`.
pub fn page(comparison: &Comparison) -> Result<String, InsightError> {
    let heads = comparison.runs.iter().enumerate().map(|(index, run)| Head {
        letter: letter(index),
        id: run.id.clone(),
        state: state(run.state),
        about: [
            Some(run.pipeline.clone()),
            run.profile.as_ref().map(|name| format!("profile {name}")),
            run.seconds.map(seconds),
        ]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
        .join(", "),
    });
    let plain = |name: &str, values: Vec<String>| Line {
        name: name.to_owned(),
        cells: values
            .into_iter()
            .map(|value| (value, String::new(), ""))
            .collect(),
    };
    let rows = comparison.rows.iter().map(|row| {
        let cell = |rows: &Option<u64>| rows.map_or_else(|| "–".to_owned(), count);
        plain(&row.output, row.rows.iter().map(cell).collect())
    });
    let numbers = comparison.numbers.iter().map(|row| {
        let cell = |value: &Option<f64>| value.map_or_else(|| "–".to_owned(), number);
        plain(&row.name, row.values.iter().map(cell).collect())
    });
    let samples = [
        ("Better rows", &comparison.better),
        ("Worse rows", &comparison.worse),
    ];
    let page_samples = samples
        .into_iter()
        .filter(|(_, samples)| !samples.is_empty())
        .map(|(title, samples)| (title, samples.iter().map(sample).collect()));
    let datasets = comparison.datasets.iter().map(|dataset| {
        let index = comparison.runs.iter().position(|run| run.id == dataset.run);
        let title = format!(
            "{} in {}: {} entered, {} left, {} changed, {} the same",
            dataset.output,
            letter(index.unwrap_or_default()),
            plural(dataset.entered, "row"),
            count(dataset.left),
            count(dataset.changed),
            count(dataset.same)
        );
        (title, dataset)
    });
    let page = Page {
        comparison,
        runs: heads.collect(),
        rows: rows.collect(),
        metrics: comparison.metrics.iter().map(metric).collect(),
        numbers: numbers.collect(),
        curves: comparison.curves.iter().map(curve).collect(),
        samples: page_samples.collect(),
        datasets: datasets.collect(),
    };
    Ok(page::render("compare.html", &page)?)
}

fn metric(row: &super::MetricRow) -> Line {
    let decimals = Decimals::of(row.values.iter().flatten().copied());
    let cell = |(value, change): (&Option<f64>, &Option<super::Change>)| {
        let value = value.map_or_else(|| "–".to_owned(), |value| decimals.plain(value));
        let Some(change) = change else {
            return (value, String::new(), "");
        };
        let remark = format!(
            "{}, {}",
            decimals.difference(change.difference, change.interval()),
            plural(change.rows as u64, "row")
        );
        (value, remark, verdict(change.interval()))
    };
    let column = if row.column == row.metric {
        String::new()
    } else {
        format!(" · {}", row.column)
    };
    Line {
        name: format!("{} {}{column}", row.stage, label(&row.metric)),
        cells: row.values.iter().zip(&row.changes).map(cell).collect(),
    }
}

fn curve(row: &super::CurveRow) -> Card {
    let series: Vec<Series> = row
        .curves
        .iter()
        .enumerate()
        .filter(|(_, curve)| !curve.is_empty())
        .map(|(index, curve)| Series {
            label: letter(index),
            points: curve
                .iter()
                .map(|(step, value)| (*step as f64, *value))
                .collect(),
            marked: curve.len() < 20,
        })
        .collect();
    Card {
        title: row.metric.clone(),
        note: row.node.clone(),
        svg: chart::lines(&row.metric, "step", &series),
    }
}

fn sample(sample: &Sample) -> SampleLine<'_> {
    let decimals = Decimals::of(sample.scores);
    SampleLine {
        scores: format!(
            "{} {} → {}",
            label(&sample.metric),
            decimals.plain(sample.scores[0]),
            decimals.plain(sample.scores[1])
        ),
        sample,
    }
}
