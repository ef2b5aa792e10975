//! The table of a matrix, for `flow compare` and at the end of a run.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::error::{CliError, Exit};
use super::output::Output;
use super::show::state_text;
use crate::config::suggest;
use crate::engine::RunState;
use crate::insight::compare::{Group, GroupMetric, group, group_page};
use crate::runs::{self, RunGraph};
use crate::ui::{plural, seconds, table};

/// Columns of the text where standard output is no terminal.
const WIDTH: usize = 100;
/// Between columns.
const GAP: usize = 3;

/// Answers `flow compare MATRIX`; `folders` are those of its runs.
pub fn show(
    folders: &[PathBuf],
    as_json: bool,
    html: Option<&Path>,
    output: &Output,
) -> Result<Exit, CliError> {
    let group = read(folders)?;
    if as_json {
        output.print_json(&json!(group))?;
    } else if let Some(path) = html {
        output.save(path, &group_page(&group)?)?;
    } else {
        output.print(&as_text(&group, output))?;
    }
    Ok(Exit::Ok)
}

/// Prints the table of a matrix that has just run; where its records could not be kept there is none.
pub fn print(runs: &Path, group: &str, output: &Output) -> Result<(), CliError> {
    match runs::find_group(runs, group) {
        Ok(Some(folders)) => output.print(&as_text(&read(&folders)?, output)),
        Ok(None) | Err(_) => Ok(()),
    }
}

fn read(folders: &[PathBuf]) -> Result<Group, CliError> {
    let unreadable = |error: std::io::Error| {
        CliError::failed(
            format!("the records of the matrix cannot be read: {error}"),
            None,
        )
    };
    let views = folders.iter().map(|folder| runs::show(folder));
    let views = views.collect::<Result<Vec<_>, _>>().map_err(unreadable)?;
    let graph = folders.first().map(|folder| RunGraph::read(folder));
    let graph = graph.transpose().map_err(unreadable)?.unwrap_or_default();
    Ok(group(&views, &graph))
}

/// A column of the table: what stands above it and in each row.
struct Column {
    header: String,
    cells: Vec<String>,
}

impl Column {
    fn new(header: &str, cells: impl Iterator<Item = String>) -> Self {
        Self {
            header: header.to_owned(),
            cells: cells.collect(),
        }
    }

    fn width(&self) -> usize {
        let widths = self
            .cells
            .iter()
            .chain([&self.header])
            .map(|cell| cell.chars().count());
        widths.max().unwrap_or(0)
    }
}

fn as_text(group: &Group, output: &Output) -> String {
    let style = output.style;
    let variants = &group.variants;
    let profile = group
        .profile
        .as_ref()
        .map(|name| format!(" with profile {name}"));
    let mut text = format!(
        "\n{} of {}{}: {}\n",
        style.bold(&format!("matrix {}", group.id)),
        group.pipeline,
        profile.unwrap_or_default(),
        plural(variants.len() as u64, "variant")
    );
    let number = |id: &str| id.rsplit('-').next().unwrap_or_default().to_owned();
    let mut columns = vec![Column::new(
        "",
        variants.iter().map(|variant| number(&variant.id)),
    )];
    for (axis, (_, name)) in group.axes.iter().enumerate() {
        let cells = variants
            .iter()
            .map(|variant| value_text(&variant.params[axis]));
        columns.push(Column::new(name, cells));
    }
    let mut last = vec![Column::new(
        "own nodes",
        variants
            .iter()
            .map(|variant| format!("{} of {}", variant.own_nodes, variant.nodes)),
    )];
    if variants.iter().any(|variant| variant.own_seconds > 0.0) {
        let cells = variants.iter().map(|variant| seconds(variant.own_seconds));
        last.push(Column::new("own time", cells));
    }
    if variants
        .iter()
        .any(|variant| variant.state != RunState::Finished)
    {
        last.push(Column::new(
            "state",
            variants
                .iter()
                .map(|variant| state_text(variant.state, style)),
        ));
    }
    let room = output.width.map_or(WIDTH, usize::from);
    let mut taken: usize = columns
        .iter()
        .chain(&last)
        .map(|column| column.width() + GAP)
        .sum();
    let mut left_out = Vec::new();
    for (place, metric) in group.metrics.iter().enumerate() {
        let column = metric_column(metric);
        // One at least is shown, however long its name.
        if place > 0 && taken + column.width() + GAP > room {
            left_out.push(metric.short.as_str());
            continue;
        }
        taken += column.width() + GAP;
        columns.push(column);
    }
    columns.append(&mut last);
    let header: Vec<&str> = columns
        .iter()
        .map(|column| column.header.as_str())
        .collect();
    let rows: Vec<Vec<String>> = (0..variants.len())
        .map(|row| {
            columns
                .iter()
                .map(|column| column.cells[row].clone())
                .collect()
        })
        .collect();
    text.push_str(&table(&header, &rows, None));
    if group.metrics.iter().any(|metric| !metric.best.is_empty()) {
        text.push_str("* the best; differences are from the first variant\n");
    }
    if !left_out.is_empty() {
        text.push_str(&format!(
            "no room for {}; `flow compare {} --html FILE` shows all\n",
            suggest::list(left_out),
            group.id
        ));
    }
    if group.metrics.is_empty() {
        text.push_str("no final number differs between the variants\n");
    }
    for variant in variants {
        if let Some(error) = &variant.error {
            text.push_str(&format!("{} {}\n", number(&variant.id), first_line(error)));
        }
    }
    text.push('\n');
    text
}

fn metric_column(metric: &GroupMetric) -> Column {
    let decimals = metric.decimals();
    let cells = metric.values.iter().enumerate().map(|(place, value)| {
        let Some(value) = value else {
            return "–".to_owned();
        };
        let mut cell = decimals.plain(*value);
        if let Some(difference) = metric.differences[place].filter(|_| place > 0) {
            cell.push_str(&format!(" {}", decimals.signed(difference)));
        }
        if metric.best.contains(&place) {
            cell.push_str(" *");
        }
        cell
    });
    Column::new(&metric.short, cells)
}

fn value_text(value: &Value) -> String {
    let text = match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    super::compare::cut(&text, 24)
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}
