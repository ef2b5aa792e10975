//! A run of all variants of a matrix: one run of the engine, told, recorded and tracked as one run for each variant.

use std::collections::HashMap;

use petgraph::graph::NodeIndex;

use super::compare_group;
use super::error::{CliError, Exit};
use super::output::Output;
use super::run::{Kept, Listeners, Project, exit, summary, tell_failure};
use super::shared;
use crate::cache::Cache;
use crate::engine::{NodeOutcome, NodeStatus, Plan, RunOutcome, RunState, Sink};
use crate::graph::base_name;
use crate::runs::{Split, VariantOf};
use crate::ui::plural;

/// Runs the plan of all variants with `go` and ends with the table that compares them.
pub fn run(
    project: &Project,
    plan: &Plan,
    group: &str,
    cache: &Cache,
    screen: &dyn Sink,
    go: impl FnOnce(&dyn Sink) -> RunOutcome,
    output: &Output,
) -> Result<Exit, CliError> {
    let (graph, runs) = (project.graph, &project.folders.runs);
    let digits = graph.variants.len().to_string().len();
    let mut kept: Vec<Kept> = Vec::with_capacity(graph.variants.len());
    let mut parts: Vec<Plan> = Vec::with_capacity(graph.variants.len());
    let mut users: HashMap<NodeIndex, usize> = HashMap::with_capacity(plan.nodes.len());
    for node in graph.variants.iter().flat_map(|variant| &variant.nodes) {
        *users.entry(*node).or_default() += 1;
    }
    for (index, variant) in graph.variants.iter().enumerate() {
        let id = format!("{group}-{:0digits$}", index + 1);
        let of = VariantOf {
            group: group.to_owned(),
            label: variant.label.clone(),
            params: variant.params.clone(),
            nodes: variant.nodes.len(),
            own_nodes: variant.nodes.iter().filter(|node| users[node] == 1).count(),
        };
        let part = plan.part(&variant.nodes);
        kept.push(project.keep(&part, &id, Some((variant, &of)), output));
        parts.push(part);
    }
    let listening = kept.iter().zip(&parts).map(|(kept, part)| {
        let names = part.nodes.iter().map(|node| node.name.as_str());
        (kept.id.as_str(), names, kept as &dyn Sink)
    });
    let split = Split::new(listening);
    let outcome = go(&Listeners(&[screen, &split]));
    drop(split);
    let by_name: HashMap<&str, &NodeOutcome> = outcome
        .nodes
        .iter()
        .map(|node| (node.name.as_str(), node))
        .collect();
    let mut failed = Vec::new();
    for ((kept, part), variant) in kept.iter().zip(&parts).zip(&graph.variants) {
        let nodes: Vec<&NodeOutcome> = part
            .nodes
            .iter()
            .filter_map(|node| by_name.get(node.name.as_str()).copied())
            .collect();
        kept.close_record(&nodes, runs, cache, output);
        kept.close_tracking(state(&nodes), &nodes, runs, cache, output);
        if let Some(node) = nodes.iter().find(|node| node.status == NodeStatus::Failed) {
            failed.push((kept, &variant.label, *node));
        }
    }
    if let Some(shared) = &outcome.shared {
        shared::tell(shared, output);
    }
    compare_group::print(&project.folders.runs, group, output)?;
    let record = |node: &str| {
        let has = |part: &Plan| part.nodes.iter().any(|other| other.name == node);
        let place = parts.iter().position(has)?;
        Some(runs.join(&kept[place].id))
    };
    tell_failure(&outcome, record, output);
    for (kept, label, node) in &failed {
        output.tell(&format!(
            "  {} {label} ({}): `{}` failed: {}",
            output.messages.red("×"),
            kept.id,
            base_name(&node.name),
            node.error.as_deref().unwrap_or_default()
        ));
    }
    let whole = format!(
        "matrix {group} of {}",
        plural(graph.variants.len() as u64, "variant")
    );
    output.tell(&summary(&outcome, &whole));
    Ok(exit(outcome.state))
}

/// How a variant ended, by its own nodes.
fn state(nodes: &[&NodeOutcome]) -> RunState {
    let any = |status| nodes.iter().any(|node| node.status == status);
    if any(NodeStatus::Failed) {
        RunState::Failed
    } else if any(NodeStatus::Skipped) {
        RunState::Interrupted
    } else {
        RunState::Finished
    }
}
