//! `flow compare`: runs side by side.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::error::{CliError, Exit};
use super::folders::Folders;
use super::output::Output;
use super::show::{state_text, status_text};
use super::{compare_group, record};
use crate::cache::Cache;
use crate::insight::compare::{
    Comparison, Dataset, MetricRow, NodeRow, Sample, compare, letter, page,
};
use crate::insight::{Decimals, metric_label};
use crate::runs;
use crate::ui::{Style, count, number, plural, seconds, sparkline, table};

/// Rows named of each kind.
const EXAMPLES: usize = 3;

/// Compare runs: what was asked differently, and what came out differently
///
/// The first run is the one that the others are compared with. A matrix is one name for the runs of all its variants, which
/// make one table. Differences of scores are over the rows that both runs
/// have, with 95 % bootstrap intervals. What the records tell is told also while a run holds the cache.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Two runs or more: ids, beginnings of ids, `latest`, `latest~1`; or one matrix
    #[arg(value_name = "RUN", required = true, num_args = 1..)]
    runs: Vec<String>,

    /// Print everything as JSON
    #[arg(long, conflicts_with = "html")]
    json: bool,

    /// Write a page into this file
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

pub fn run(arguments: &Arguments, output: &Output) -> Result<Exit, CliError> {
    let folders = Folders::of_working_folder();
    if let [name] = arguments.runs.as_slice() {
        let Some(group) = runs::find_group(&folders.runs, name)? else {
            return Err(CliError::wrong(
                format!("`{name}` is one run, which has nothing to be compared with"),
                "name another run too, or the id of a matrix",
            ));
        };
        return compare_group::show(&group, arguments.json, arguments.html.as_deref(), output);
    }
    let runs = arguments
        .runs
        .iter()
        .map(|name| record::read(&folders, name))
        .collect::<Result<Vec<_>, _>>()?;
    let comparison = compare(&folders.runs, &runs, Cache::open_to_glance)?;
    if arguments.json {
        output.print_json(&json!(comparison))?;
        return Ok(Exit::Ok);
    }
    if let Some(path) = &arguments.html {
        output.save(path, &page(&comparison)?)?;
    } else {
        output.print_cut(
            &as_text(&comparison, output),
            "`--json` and `--html` show it whole",
        )?;
    }
    for line in &comparison.missing {
        output.warning(line);
    }
    Ok(Exit::Ok)
}

fn as_text(comparison: &Comparison, output: &Output) -> String {
    let style = output.style;
    let letters: Vec<String> = (0..comparison.runs.len()).map(letter).collect();
    let header = |first: &[&'static str], last: &[&'static str]| -> Vec<String> {
        let letters = letters.iter().cloned();
        let own = |names: &[&str]| {
            names
                .iter()
                .map(|name| (*name).to_owned())
                .collect::<Vec<_>>()
        };
        own(first)
            .into_iter()
            .chain(letters)
            .chain(own(last))
            .collect()
    };
    let section = |title: &str, header: Vec<String>, rows: Vec<Vec<String>>| {
        let header: Vec<&str> = header.iter().map(String::as_str).collect();
        if rows.is_empty() {
            return String::new();
        }
        let table = table(&header, &rows, output.width);
        format!("{}\n{table}\n", style.bold(title))
    };
    let mut text = String::new();
    let runs = comparison.runs.iter().zip(&letters).map(|(run, letter)| {
        vec![
            letter.clone(),
            run.id.clone(),
            run.pipeline.clone(),
            run.profile.clone().unwrap_or_default(),
            state_text(run.state, style),
            run.seconds.map(seconds).unwrap_or_default(),
        ]
    });
    let names = ["", "run", "pipeline", "profile", "state", "time"];
    text += &section("runs", names.map(str::to_owned).to_vec(), runs.collect());
    let params = comparison.params.iter().map(|part| {
        let values = part.values.iter().map(|value| match value {
            Some(value) => cut(value, 48),
            None => "–".to_owned(),
        });
        [part.node.clone(), part.part.clone()]
            .into_iter()
            .chain(values)
            .collect()
    });
    text += &section(
        "what was asked differently",
        header(&["node", "part"], &[]),
        params.collect(),
    );
    // The others read what these gave; `--json` and `--html` have them one by one.
    let changed =
        |node: &&NodeRow| !node.parts.is_empty() || node.status.iter().any(Option::is_none);
    let nodes = comparison.nodes.iter().filter(changed);
    text += &section(
        "nodes that differ",
        header(&["node"], &["because of", "result"]),
        nodes.map(|node| node_row(node, style)).collect(),
    );
    let followers = || comparison.nodes.iter().filter(|node| !changed(node));
    if followers().next().is_some() {
        let same = followers()
            .filter(|node| node.same_result == Some(true))
            .count();
        text.push_str(&format!(
            "{} below them read something else; {same} gave the same all the same\n\n",
            plural(followers().count() as u64, "node")
        ));
    }
    let rows = comparison
        .rows
        .iter()
        .filter(|row| row.rows.iter().any(|rows| *rows != row.rows[0]))
        .map(|row| {
            let cells = row
                .rows
                .iter()
                .map(|rows| rows.map_or_else(|| "–".to_owned(), count));
            std::iter::once(row.output.clone()).chain(cells).collect()
        });
    text += &section("rows", header(&["output"], &[]), rows.collect());
    let metrics = comparison.metrics.iter().map(|row| metric_row(row, style));
    text += &section(
        "scores (means; differences from A with 95 % intervals)",
        header(&["metric"], &[]),
        metrics.collect(),
    );
    let numbers = comparison.numbers.iter().map(|row| {
        let cells = row
            .values
            .iter()
            .map(|value| value.map_or_else(|| "–".to_owned(), number));
        std::iter::once(row.name.clone()).chain(cells).collect()
    });
    text += &section("other numbers", header(&["number"], &[]), numbers.collect());
    text += &section(
        "curves (last value)",
        header(&["metric"], &[]),
        comparison.curves.iter().map(curve_row).collect(),
    );
    if comparison.nodes.is_empty() && comparison.missing.is_empty() {
        text.push_str("the runs asked for the same and gave the same\n\n");
    }
    for dataset in &comparison.datasets {
        let run = comparison.runs.iter().position(|run| run.id == dataset.run);
        text.push_str(&dataset_text(
            dataset,
            &letters[run.unwrap_or_default()],
            style,
        ));
    }
    let last = letters.last().map_or("", String::as_str);
    for (title, samples) in [("better", &comparison.better), ("worse", &comparison.worse)] {
        if !samples.is_empty() {
            text.push_str(&format!(
                "{}\n",
                style.bold(&format!("rows that got {title} most from A to {last}"))
            ));
            for sample in samples {
                text.push_str(&sample_text(sample, last, style));
            }
        }
    }
    text
}

fn node_row(node: &NodeRow, style: Style) -> Vec<String> {
    let statuses = node.status.iter().map(|status| match status {
        Some(status) => status_text(*status, style),
        None => "–".to_owned(),
    });
    let why = if node.parts.is_empty() {
        "not in every run".to_owned()
    } else {
        node.parts.join(", ")
    };
    let result = match node.same_result {
        Some(true) => "the same",
        Some(false) => "differs",
        None => "–",
    };
    std::iter::once(node.node.clone())
        .chain(statuses)
        .chain([why, result.to_owned()])
        .collect()
}

fn metric_row(row: &MetricRow, style: Style) -> Vec<String> {
    let decimals = Decimals::of(row.values.iter().flatten().copied());
    let cells = row.values.iter().zip(&row.changes).map(|(value, change)| {
        let value = value.map_or_else(|| "–".to_owned(), |value| decimals.plain(value));
        let Some(change) = change else {
            return value;
        };
        let difference = decimals.difference(change.difference, change.interval());
        let difference = match (change.low, change.high) {
            (low, _) if low > 0.0 => style.green(&difference),
            (_, high) if high < 0.0 => style.red(&difference),
            _ => difference,
        };
        format!(
            "{value}  {difference}, {}",
            plural(change.rows as u64, "row")
        )
    });
    let column = if row.column == row.metric {
        metric_label(&row.metric)
    } else {
        format!("{}, {}", metric_label(&row.metric), row.column)
    };
    std::iter::once(format!("{} {column}", row.stage))
        .chain(cells)
        .collect()
}

fn curve_row(row: &crate::insight::compare::CurveRow) -> Vec<String> {
    let cells = row.curves.iter().map(|curve| {
        let values: Vec<f64> = curve.iter().map(|(_, value)| *value).collect();
        match values.iter().rfind(|value| value.is_finite()) {
            Some(last) => format!("{} {}", sparkline(&values, 20), number(*last)),
            None => "–".to_owned(),
        }
    });
    std::iter::once(format!("{} {}", row.node, row.metric))
        .chain(cells)
        .collect()
}

fn dataset_text(dataset: &Dataset, letter: &str, style: Style) -> String {
    let mut text = format!(
        "{} in {letter}: {} entered, {} left, {} changed, {} the same\n",
        style.bold(&dataset.output),
        plural(dataset.entered, "row"),
        count(dataset.left),
        count(dataset.changed),
        count(dataset.same)
    );
    for (mark, rows, total) in [
        ("+", &dataset.entered_rows, dataset.entered),
        ("-", &dataset.left_rows, dataset.left),
        ("~", &dataset.changed_rows, dataset.changed),
    ] {
        let rows = &rows[..rows.len().min(EXAMPLES)];
        for row in rows {
            text.push_str(&format!("  {mark} {}  {}\n", row.id, cut(&row.text, 72)));
        }
        if total > rows.len() as u64 {
            text.push_str(&format!(
                "  {mark} and {} more\n",
                count(total - rows.len() as u64)
            ));
        }
    }
    text.push('\n');
    text
}

fn sample_text(sample: &Sample, last: &str, style: Style) -> String {
    let decimals = Decimals::of(sample.scores);
    let [before, after] = sample.scores.map(|score| decimals.plain(score));
    let mut text = format!(
        "  {}  {}  {} {before} → {after}\n",
        style.bold(&sample.id),
        cut(&sample.question, 60),
        metric_label(&sample.metric),
    );
    let [old, new] = &sample.answers;
    for (name, answer) in [("reference", &sample.reference), ("A", old), (last, new)] {
        text.push_str(&format!("    {name:<9}  {}\n", or_nothing(answer, 100)));
    }
    text
}

/// Like [`cut`], but says where there is nothing.
pub fn or_nothing(text: &str, most: usize) -> String {
    let line = cut(text, most);
    if line.is_empty() {
        "(nothing)".to_owned()
    } else {
        line
    }
}

/// One line of at most so many characters.
pub fn cut(text: &str, most: usize) -> String {
    // Data may hold what would steer a terminal.
    let is_space = |letter: char| letter.is_whitespace() || letter.is_control();
    let words = text.split(is_space).filter(|word| !word.is_empty());
    let line = words.collect::<Vec<_>>().join(" ");
    if line.chars().count() <= most {
        return line;
    }
    let kept: String = line.chars().take(most - 1).collect();
    format!("{}…", kept.trim_end())
}
