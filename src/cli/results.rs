//! What a finished run has to show: the small tables at the end of the pipeline.

use std::collections::{BTreeMap, HashSet};

use super::error::CliError;
use super::output::Output;
use super::rows::Rows;
use crate::cache::Cache;
use crate::engine::RunOutcome;
use crate::graph::Graph;

/// A table with more rows is looked at with `flow data`.
const MOST_ROWS: u64 = 20;
/// With more of them nobody wants to see any.
const MOST_TABLES: usize = 4;

/// Prints every table of at most 20 rows that no other node reads, under the name the user knows it by.
pub fn print(
    graph: &Graph,
    outcome: &RunOutcome,
    cache: &Cache,
    output: &Output,
) -> Result<(), CliError> {
    let read: HashSet<(&str, &str)> = graph
        .dag
        .node_weights()
        .flat_map(|node| &node.inputs)
        .map(|input| (input.node.as_str(), input.output.as_str()))
        .collect();
    let mut small = Vec::new();
    for node in &outcome.nodes {
        for (name, artifact) in &node.outputs {
            let is_small = artifact
                .rows
                .is_some_and(|rows| (1..=MOST_ROWS).contains(&rows));
            if is_small && !read.contains(&(node.name.as_str(), name.as_str())) {
                small.push((format!("{}.{name}", node.name), artifact));
            }
        }
    }
    if small.len() > MOST_TABLES {
        return Ok(());
    }
    for (full, artifact) in small {
        let exported = graph.exports.iter().find(|(_, target)| **target == full);
        let name = exported.map_or(full.as_str(), |(name, _)| name);
        let inputs = BTreeMap::from([("data".to_owned(), artifact.clone())]);
        let rows = cache.with_views(&inputs, |connection| Rows::read(connection, "from data"))?;
        output.print(&format!(
            "\n{}\n{}",
            output.style.bold(name),
            rows.as_text(output.width)
        ))?;
    }
    Ok(())
}
