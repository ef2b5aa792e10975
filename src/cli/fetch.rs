//! `flow fetch`: gets what a pipeline needs from outside, so that a later run can be offline.

use clap::Args;

use super::arguments::PipelineArguments;
use super::error::{CliError, Exit};
use super::folders::Folders;
use super::output::Output;
use super::resolve::Outside;
use crate::cache::Cache;
use crate::engine::{Event, EventKind, Resolve as _, RunState};
use crate::graph::compile_without_data;
use crate::ops::Catalog;

/// Get the archives and models a pipeline needs, so that a later run can be offline
///
/// Ends with code 1 and one line where something cannot be had.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    pipeline: PipelineArguments,

    /// Only say whether everything is here already
    #[arg(long)]
    offline: bool,
}

pub fn run(arguments: &Arguments, catalog: &Catalog, output: &Output) -> Result<Exit, CliError> {
    let spec = arguments.pipeline.load()?;
    let graph = compile_without_data(&spec, catalog)?;
    let folders = Folders::of_pipeline(&spec);
    let cache = Cache::open_read_only(&folders.cache)?;
    let sink = output.sink();
    let outside = Outside {
        root: &folders.root,
        home: &folders.home,
        offline: arguments.offline,
        cache: &cache,
        sink: &*sink,
    };
    let result = fetch_all(&graph, &outside);
    sink.event(&Event::now(EventKind::RunFinished {
        state: RunState::Finished,
        seconds: 0.0,
    }));
    match result {
        Ok(places) => {
            output.print(&places.join("\n"))?;
            Ok(Exit::Ok)
        }
        // One line, so that a script can show it as it is.
        Err(message) => Err(CliError::failed(message, None)),
    }
}

/// One line for each thing there is, or what could not be had.
fn fetch_all(graph: &crate::graph::Graph, outside: &Outside) -> Result<Vec<String>, String> {
    let (mut lines, mut models, mut paths) = (Vec::new(), Vec::new(), Vec::new());
    for node in graph.dag.node_weights() {
        for data in node.paths.values() {
            if paths.contains(&data) {
                continue;
            }
            paths.push(data);
            let place = if data.path.exists() {
                data.path.clone()
            } else {
                outside
                    .fetch(data)
                    .map_err(|error| one_line(&node.name, &error))?
            };
            lines.push(format!("{}  {}", node.name, place.display()));
        }
        for model in node.models.values() {
            if models.contains(&model) {
                continue;
            }
            models.push(model);
            let (place, _) = outside
                .resolve(model)
                .map_err(|error| one_line(&node.name, &error))?;
            let place = if place.as_os_str().is_empty() {
                model.url.clone().unwrap_or_default()
            } else {
                place.display().to_string()
            };
            lines.push(format!("{}  {place}", node.name));
        }
    }
    Ok(lines)
}

fn one_line(node: &str, error: &crate::engine::ResolveError) -> String {
    let help = error
        .help
        .as_ref()
        .map(|help| format!("; {help}"))
        .unwrap_or_default();
    format!("`{node}`: {}{help}", error.message).replace('\n', " ")
}
