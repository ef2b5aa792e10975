//! What the record alone tells: how it went, the graph, where results came from, configuration and machine.

use serde::Serialize;

use crate::cache::Cache;
use crate::engine::{NodeStatus, RunState};
use crate::insight::chart;
use crate::runs::{NodeView, Run};
use crate::ui::{bytes, number, plural, seconds};

#[derive(Serialize)]
pub(super) struct Section {
    id: String,
    pipeline: String,
    state: &'static str,
    error: Option<String>,
    facts: Vec<Fact>,
    /// Final numbers by node.
    metrics: Vec<Fact>,
    graph: String,
    nodes: Vec<NodeRow>,
    machine: Vec<Fact>,
    /// The pipeline file as it was.
    config: String,
    /// What each node was given: its params as they went into its fingerprint.
    params: Vec<Params>,
}

/// A name, a value, and a smaller remark.
#[derive(Serialize)]
struct Fact {
    name: String,
    value: String,
    note: String,
}

#[derive(Serialize)]
struct NodeRow {
    name: String,
    op: String,
    state: &'static str,
    time: String,
    inputs: Vec<String>,
    outputs: Vec<String>,
    fingerprint: String,
    /// When its result was made, where the cache says.
    made: String,
    reasons: Vec<String>,
}

#[derive(Serialize)]
struct Params {
    node: String,
    values: Vec<(String, String)>,
}

fn fact(name: &str, value: impl Into<String>, note: impl Into<String>) -> Fact {
    Fact {
        name: name.to_owned(),
        value: value.into(),
        note: note.into(),
    }
}

pub(super) fn section(run: &Run, cache: Option<&Cache>) -> Section {
    let head = &run.view.head;
    let params = run.graph.nodes.iter().map(|node| Params {
        node: node.name.clone(),
        values: node
            .models
            .iter()
            .map(|(name, model)| (name.clone(), model.clone()))
            .chain(node.manifest.params.clone())
            .collect(),
    });
    Section {
        id: head.id.clone(),
        pipeline: head.pipeline.clone(),
        state: state(head.state),
        error: head.error.clone(),
        facts: facts(run),
        metrics: head
            .metrics
            .iter()
            .map(|(name, value)| fact(name, number(*value), ""))
            .collect(),
        graph: chart::graph("The nodes of the run and what they read", &boxes(run)),
        nodes: nodes(run, cache),
        machine: machine(run),
        config: fs_err::read_to_string(run.folder.join("pipeline.yaml")).unwrap_or_default(),
        params: params.filter(|params| !params.values.is_empty()).collect(),
    }
}

fn facts(run: &Run) -> Vec<Fact> {
    let head = &run.view.head;
    let count = |name: &str| head.counts.get(name).copied().unwrap_or_default();
    let others: Vec<String> = ["cached", "failed", "skipped"]
        .into_iter()
        .filter(|name| count(name) > 0)
        .map(|name| format!("{} {name}", count(name)))
        .collect();
    let started = head.started.get(..16).unwrap_or(&head.started);
    let mut facts = vec![
        fact(
            "time",
            head.seconds.map_or_else(|| "–".to_owned(), seconds),
            format!("started {} UTC", started.replace('T', " ")),
        ),
        fact("nodes", format!("{} ran", count("ran")), others.join(", ")),
    ];
    if let Some(profile) = &head.profile {
        facts.push(fact("profile", profile, ""));
    }
    facts
}

pub(in crate::insight) fn state(state: RunState) -> &'static str {
    match state {
        RunState::Running => "running",
        RunState::Finished => "finished",
        RunState::Failed => "failed",
        RunState::Interrupted => "interrupted",
    }
}

fn status(node: &NodeView) -> &'static str {
    match node.status {
        NodeStatus::Ran => "ran",
        NodeStatus::Cached => "cached",
        NodeStatus::Failed => "failed",
        NodeStatus::Skipped => "skipped",
    }
}

fn boxes(run: &Run) -> Vec<chart::NodeBox> {
    let nodes = &run.graph.nodes;
    let place = |name: &str| nodes.iter().position(|node| node.name == name);
    let drawn = |node: &crate::runs::GraphNode| {
        let view = run.view.node(&node.name);
        let state = view.map_or("unfinished", status);
        let note = match view {
            Some(view) if view.status == NodeStatus::Ran => {
                format!("{} · {}", node.op, seconds(view.seconds))
            }
            _ => format!("{} · {state}", node.op),
        };
        let mut reads: Vec<usize> = node
            .inputs
            .values()
            .filter_map(|origin| place(&origin.node))
            .collect();
        reads.sort_unstable();
        reads.dedup();
        chart::NodeBox {
            name: node.name.clone(),
            note,
            state,
            reads,
        }
    };
    nodes.iter().map(drawn).collect()
}

fn nodes(run: &Run, cache: Option<&Cache>) -> Vec<NodeRow> {
    let row = |node: &NodeView| {
        let inputs = run.graph.node(&node.name).map(|known| {
            let inputs = known.inputs.iter();
            inputs
                .map(|(port, origin)| format!("{port} ← {}", run.short_name(&origin.to_string())))
                .collect()
        });
        let outputs = node.outputs.iter().map(|output| {
            let size = output
                .rows
                .map_or_else(|| bytes(output.bytes), |rows| plural(rows, "row"));
            format!("{} {} ({size})", output.name, output.digest.short())
        });
        let entry = node
            .fingerprint
            .and_then(|fingerprint| cache?.entry(fingerprint));
        NodeRow {
            name: node.name.clone(),
            op: node.op.clone(),
            state: status(node),
            time: match node.status {
                NodeStatus::Ran | NodeStatus::Failed => seconds(node.seconds),
                _ => String::new(),
            },
            inputs: inputs.unwrap_or_default(),
            outputs: outputs.collect(),
            fingerprint: node
                .fingerprint
                .map(|fingerprint| fingerprint.0.short())
                .unwrap_or_default(),
            made: entry
                .map(|entry| entry.created.chars().take(16).collect::<String>())
                .unwrap_or_default()
                .replace('T', " "),
            reasons: node.reasons.iter().map(ToString::to_string).collect(),
        }
    };
    run.view.nodes.iter().map(row).collect()
}

fn machine(run: &Run) -> Vec<Fact> {
    let head = &run.view.head;
    let machine = &head.environment;
    let facts = [
        fact("flow", &head.version, ""),
        fact("command", format!("flow {}", head.arguments.join(" ")), ""),
        fact("seed", head.seed.to_string(), ""),
        fact("system", &machine.system, ""),
        fact(
            "processor",
            &machine.cpu,
            if machine.cores > 0 {
                plural(machine.cores as u64, "thread")
            } else {
                String::new()
            },
        ),
        fact(
            "memory",
            if machine.memory > 0 {
                bytes(machine.memory)
            } else {
                String::new()
            },
            "",
        ),
        fact("GPU", machine.gpus.join(", "), ""),
    ];
    facts
        .into_iter()
        .filter(|fact| !fact.value.is_empty())
        .collect()
}
