//! `flow runs`: the runs on record.

use clap::Args;
use serde_json::json;

use super::error::{CliError, Exit};
use super::folders::Folders;
use super::output::Output;
use super::show::state_text;
use crate::runs::{self, Head};
use crate::ui::{seconds, table};

/// List the runs of the project, the newest first
#[derive(Debug, Args)]
pub struct Arguments {
    /// Show at most so many
    #[arg(long, short = 'n', value_name = "N", default_value_t = 20)]
    limit: usize,

    /// Print all of them as JSON
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &Arguments, output: &Output) -> Result<Exit, CliError> {
    let folders = Folders::of_working_folder();
    let heads = runs::list(&folders.runs)?;
    if arguments.json {
        output.print_json(&json!(heads))?;
    } else if heads.is_empty() {
        output.tell(&format!(
            "there are no runs in `{}`; `flow run PIPELINE` makes the first",
            folders.runs.display()
        ));
    } else {
        let rows: Vec<_> = heads
            .iter()
            .take(arguments.limit)
            .map(|head| row(head, output))
            .collect();
        output.print(&table(
            &["run", "pipeline", "profile", "state", "time", "nodes"],
            &rows,
            None,
        ))?;
        if heads.len() > arguments.limit {
            output.tell(&format!(
                "{} more; `--limit` shows them",
                heads.len() - arguments.limit
            ));
        }
    }
    Ok(Exit::Ok)
}

fn row(head: &Head, output: &Output) -> Vec<String> {
    vec![
        head.id.clone(),
        head.pipeline.clone(),
        head.profile.clone().unwrap_or_default(),
        state_text(head.state, output.style),
        head.seconds.map(seconds).unwrap_or_default(),
        counts(head),
    ]
}

/// `3 ran, 9 cached`.
pub fn counts(head: &Head) -> String {
    let known = ["failed", "skipped", "ran", "cached"]
        .into_iter()
        .filter_map(|name| Some((name, *head.counts.get(name)?)));
    known
        .map(|(name, count)| format!("{count} {name}"))
        .collect::<Vec<_>>()
        .join(", ")
}
