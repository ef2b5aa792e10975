//! `flow check`: finds what is wrong with a pipeline without running it.

use clap::Args;
use serde_json::json;

use super::arguments::PipelineArguments;
use super::error::{CliError, Exit};
use super::output::Output;
use super::plan;
use super::run::remark;
use crate::graph::{Graph, compile};
use crate::ops::Catalog;
use crate::ui::plural;

/// Check a pipeline: keys, types, names, wiring, columns, files
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    pipeline: PipelineArguments,

    /// Print the problems as JSON
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &Arguments, catalog: &Catalog, output: &Output) -> Result<Exit, CliError> {
    let graph = arguments.pipeline.load().and_then(|spec| {
        let graph = compile(&spec, catalog)?;
        remark(&spec, output);
        Ok(graph)
    });
    match graph {
        Ok(graph) if arguments.json => output.print_json(&json!({
            "problems": [],
            "nodes": graph.order.len(),
            "variants": graph.variants.len(),
        }))?,
        Ok(graph) => {
            output.print(&format!(
                "{}: no problems in {}",
                arguments.pipeline.pipeline.display(),
                extent(&graph)
            ))?;
            if !graph.variants.is_empty() {
                output.print(&plan::extent(&graph))?;
            }
        }
        Err(diagnostics) if arguments.json => {
            output.print_json(&json!({ "problems": diagnostics.to_json() }))?;
            return Ok(Exit::Wrong);
        }
        Err(diagnostics) => return Err(diagnostics.into()),
    }
    Ok(Exit::Ok)
}

/// `7 stages (14 nodes)`.
fn extent(graph: &Graph) -> String {
    let mut stages: Vec<_> = graph
        .dag
        .node_weights()
        .map(|node| node.stage.as_str())
        .collect();
    // The nodes of a stage follow each other, those of all variants too.
    stages.dedup();
    format!(
        "{} ({})",
        plural(stages.len() as u64, "stage"),
        plural(graph.order.len() as u64, "node")
    )
}
