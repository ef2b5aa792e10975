//! `flow why`: why a node ran in a run, or why it did not.

use clap::Args;
use serde_json::json;

use super::error::{CliError, Exit};
use super::folders::Folders;
use super::output::Output;
use super::plan::reason_text;
use super::record;
use crate::config::suggest;
use crate::engine::NodeStatus;
use crate::runs::{self, Why};

/// Say why a node ran in a run, or why it did not
#[derive(Debug, Args)]
pub struct Arguments {
    /// An id, the beginning of one, `latest`, or `latest~1` for the one before
    #[arg(value_name = "RUN")]
    run: String,

    /// A node such as `dedup.judge`, or a stage for all of its nodes
    #[arg(value_name = "NODE")]
    node: String,

    /// Print the answer as JSON
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &Arguments, output: &Output) -> Result<Exit, CliError> {
    let folders = Folders::of_working_folder();
    let folder = record::find(&folders, &arguments.run)?;
    let view = record::show(&folders, &arguments.run)?;
    let names: Vec<_> = view.nodes.iter().map(|node| node.name.as_str()).collect();
    let of_stage = format!("{}.", arguments.node);
    let asked: Vec<_> = names
        .iter()
        .filter(|name| **name == arguments.node || name.starts_with(&of_stage))
        .collect();
    if asked.is_empty() {
        let guess = suggest::closest(&arguments.node, names.iter().copied());
        let guess = guess
            .map(|name| format!("did you mean `{name}`? "))
            .unwrap_or_default();
        let help = format!("{guess}its nodes are {}", suggest::list(names));
        return Err(CliError::wrong(
            format!("the run {} has no node `{}`", view.head.id, arguments.node),
            help,
        ));
    }
    let mut answers = Vec::new();
    for node in asked {
        answers.extend(runs::why(&folders.runs, &folder, node)?);
    }
    if !arguments.json {
        output.print(&answers.iter().map(as_text).collect::<String>())?;
    } else if let [only] = answers.as_slice() {
        output.print_json(&json!(only))?;
    } else {
        output.print_json(&json!(answers))?;
    }
    Ok(Exit::Ok)
}

fn as_text(why: &Why) -> String {
    let Why { run, node, .. } = why;
    let mut text = match why.status {
        NodeStatus::Ran => format!("`{node}` ran in {run}:\n"),
        NodeStatus::Failed => format!("`{node}` ran in {run} and failed:\n"),
        NodeStatus::Skipped => {
            format!("`{node}` was skipped in {run}: something it needs did not finish\n")
        }
        NodeStatus::Cached => match &why.made_by {
            Some(maker) => format!(
                "`{node}` was cached in {run}: nothing it depends on had changed since {maker}, which made its result\n"
            ),
            None => format!(
                "`{node}` was cached in {run}: nothing it depends on had changed since its result was made\n"
            ),
        },
    };
    for reason in &why.reasons {
        text.push_str(&format!("  {}\n", reason_text(reason)));
    }
    if let Some(error) = &why.error {
        text.push_str(&format!("  {error}\n"));
    }
    if let Some(fingerprint) = why.fingerprint {
        text.push_str(&format!("fingerprint {}\n", fingerprint.0.short()));
    }
    text
}
