//! `flow show`: one run, node by node.

use clap::Args;
use serde_json::json;

use super::error::{CliError, Exit};
use super::folders::Folders;
use super::output::Output;
use super::record;
use super::runs::counts;
use crate::config::display;
use crate::engine::{NodeStatus, RunState};
use crate::runs::{NodeView, RunView};
use crate::ui::{Style, bytes, number, plural, seconds, table};

/// Show a run: its nodes, what they gave, its final numbers
#[derive(Debug, Args)]
pub struct Arguments {
    /// An id, the beginning of one, `latest`, or `latest~1` for the one before
    #[arg(value_name = "RUN", default_value = "latest")]
    run: String,

    /// Print everything as JSON
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &Arguments, output: &Output) -> Result<Exit, CliError> {
    let folders = Folders::of_working_folder();
    let view = record::show(&folders, &arguments.run)?;
    if arguments.json {
        output.print_json(&json!(view))?;
        return Ok(Exit::Ok);
    }
    output.print(&as_text(&view, output.style))?;
    let report = folders.runs.join(&view.head.id).join("report.html");
    if report.exists() {
        output.print(&format!("\nreport {}", display(&report)))?;
    }
    Ok(Exit::Ok)
}

fn as_text(view: &RunView, style: Style) -> String {
    let head = &view.head;
    let profile = head
        .profile
        .as_ref()
        .map(|profile| format!(" with profile {profile}"))
        .unwrap_or_default();
    let took = head
        .seconds
        .map(|took| format!(" in {}", seconds(took)))
        .unwrap_or_default();
    let mut text = format!(
        "run {}: {}{profile}\n{}{took}, started {}: {}\n\n",
        style.bold(&head.id),
        head.pipeline,
        state_text(head.state, style),
        head.started,
        counts(head)
    );
    let rows: Vec<_> = view.nodes.iter().map(|node| row(node, style)).collect();
    text.push_str(&table(
        &["node", "op", "status", "time", "outputs"],
        &rows,
        None,
    ));
    for node in &view.unfinished {
        text.push_str(&format!("{node}  {}\n", style.yellow("not finished")));
    }
    if !head.metrics.is_empty() {
        let rows: Vec<_> = head
            .metrics
            .iter()
            .map(|(name, value)| vec![name.clone(), number(*value)])
            .collect();
        text.push_str(&format!("\n{}", table(&["metric", "value"], &rows, None)));
    }
    for node in &view.nodes {
        if let (NodeStatus::Failed, Some(error)) = (node.status, &node.error) {
            text.push_str(&format!(
                "\n{} `{}`: {error}\n",
                style.red("error:"),
                node.name
            ));
        }
    }
    text
}

fn row(node: &NodeView, style: Style) -> Vec<String> {
    let outputs = node.outputs.iter().map(|output| match output.rows {
        Some(rows) => format!("{} ({})", output.name, plural(rows, "row")),
        None => format!("{} ({})", output.name, bytes(output.bytes)),
    });
    let took = if node.status == NodeStatus::Ran {
        seconds(node.seconds)
    } else {
        String::new()
    };
    vec![
        node.name.clone(),
        node.op.clone(),
        status_text(node.status, style),
        took,
        outputs.collect::<Vec<_>>().join(", "),
    ]
}

pub fn status_text(status: NodeStatus, style: Style) -> String {
    match status {
        NodeStatus::Ran => style.green("ran"),
        NodeStatus::Cached => style.dim("cached"),
        NodeStatus::Failed => style.red("failed"),
        NodeStatus::Skipped => style.yellow("skipped"),
    }
}

pub fn state_text(state: RunState, style: Style) -> String {
    match state {
        RunState::Running => style.cyan("running"),
        RunState::Finished => style.green("finished"),
        RunState::Failed => style.red("failed"),
        RunState::Interrupted => style.yellow("interrupted"),
    }
}
