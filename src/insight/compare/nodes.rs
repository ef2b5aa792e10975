//! What records tell: params and other parts of fingerprints, which nodes they concern, and how many rows came out.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::config::ArtifactKind;
use crate::engine::NodeStatus;
use crate::runs::Run;

/// A part of a node's fingerprint, by run; `None` where the node or the part is not there.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Part {
    pub node: String,
    /// `with.learning_rate`, `files.prompt`, `models.model`, `seed`.
    pub part: String,
    pub values: Vec<Option<String>>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NodeRow {
    pub node: String,
    /// By run; `None` where a run has no such node.
    pub status: Vec<Option<NodeStatus>>,
    pub fingerprints: Vec<Option<String>>,
    /// Parts of its own that differ.
    pub parts: Vec<String>,
    /// Ports that read something else, with where it comes from.
    pub inputs: BTreeMap<String, String>,
    /// Whether it gave the same all the same; `None` where it did not finish in every run.
    pub same_result: Option<bool>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RowCount {
    pub output: String,
    pub rows: Vec<Option<u64>>,
}

/// Names of the nodes of all runs, in the order of the graphs.
fn names(runs: &[Run]) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    for node in runs.iter().flat_map(|run| &run.graph.nodes) {
        if !names.contains(&node.name.as_str()) {
            names.push(&node.name);
        }
    }
    names
}

/// Parts by name, inputs left out.
fn parts(run: &Run, node: &str) -> BTreeMap<String, String> {
    let Some(node) = run.graph.node(node) else {
        return BTreeMap::new();
    };
    let mut parts = node.manifest.parts();
    // People know models by name; the digest tells two files of one name apart.
    for (param, name) in &node.models {
        if let Some(digest) = parts.get_mut(&format!("models.{param}")) {
            *digest = format!("{name} ({digest})");
        }
    }
    parts
}

fn differ<T: PartialEq>(values: &[T]) -> bool {
    values.iter().any(|value| *value != values[0])
}

pub(super) fn params(runs: &[Run]) -> Vec<Part> {
    let mut found = Vec::new();
    for node in names(runs) {
        let by_run: Vec<_> = runs.iter().map(|run| parts(run, node)).collect();
        // A node that only some runs have is told about as a node.
        if by_run.iter().any(BTreeMap::is_empty) {
            continue;
        }
        let mut names: Vec<&String> = by_run.iter().flat_map(BTreeMap::keys).collect();
        names.sort();
        names.dedup();
        for part in names {
            let values: Vec<Option<String>> = by_run
                .iter()
                .map(|parts| parts.get(part).cloned())
                .collect();
            if differ(&values) {
                found.push(Part {
                    node: node.to_owned(),
                    part: part.clone(),
                    values,
                });
            }
        }
    }
    found
}

pub(super) fn nodes(runs: &[Run]) -> Vec<NodeRow> {
    let row = |name: &str| {
        let fingerprints: Vec<_> = runs.iter().map(|run| run.fingerprint(name)).collect();
        if !differ(&fingerprints) {
            return None;
        }
        let own: Vec<_> = runs.iter().map(|run| parts(run, name)).collect();
        let mut changed: Vec<String> = own
            .iter()
            .flat_map(BTreeMap::keys)
            .filter(|part| differ(&own.iter().map(|parts| parts.get(*part)).collect::<Vec<_>>()))
            .cloned()
            .collect();
        changed.sort();
        changed.dedup();
        if own.iter().any(BTreeMap::is_empty) {
            changed.clear();
        }
        let statuses = runs
            .iter()
            .map(|run| run.view.node(name).map(|node| node.status));
        let digests: Vec<Option<Vec<_>>> = runs
            .iter()
            .map(|run| {
                let outputs = &run.view.node(name)?.outputs;
                (!outputs.is_empty()).then(|| outputs.iter().map(|output| output.digest).collect())
            })
            .collect();
        Some(NodeRow {
            node: name.to_owned(),
            status: statuses.collect(),
            fingerprints: fingerprints
                .iter()
                .map(|fingerprint| fingerprint.map(|known| known.0.short()))
                .collect(),
            parts: changed,
            inputs: inputs(runs, name),
            same_result: digests
                .iter()
                .all(Option::is_some)
                .then(|| !differ(&digests)),
        })
    };
    names(runs).into_iter().filter_map(row).collect()
}

/// Ports of a node that read something else in some run than in the first.
fn inputs(runs: &[Run], name: &str) -> BTreeMap<String, String> {
    let mut changed = BTreeMap::new();
    for run in runs {
        for (port, origin) in run
            .graph
            .node(name)
            .into_iter()
            .flat_map(|node| &node.inputs)
        {
            let digest = |run: &Run| {
                let origin = run.graph.node(name)?.inputs.get(port)?;
                run.artifact(origin).map(|output| output.digest)
            };
            if digest(run) != digest(&runs[0]) {
                changed.insert(port.clone(), run.short_name(&origin.to_string()));
            }
        }
    }
    changed
}

/// Rows of the tables people know: outputs of stages and of nodes that are a stage of their own.
pub(super) fn rows(runs: &[Run]) -> Vec<RowCount> {
    let mut names: Vec<String> = Vec::new();
    for run in runs {
        for full in shown_tables(run) {
            let name = run.short_name(&full);
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    names
        .into_iter()
        .map(|output| RowCount {
            rows: runs
                .iter()
                .map(|run| run.view.output(&output).ok()?.output.rows)
                .collect(),
            output,
        })
        .collect()
}

/// Full names of tables that stages give, and of those of bare nodes.
pub(super) fn shown_tables(run: &Run) -> Vec<String> {
    let is_shown = |full: &String, node: &str| {
        run.view.head.exports.values().any(|target| target == full)
            || run
                .graph
                .node(node)
                .is_some_and(|node| node.name == node.stage)
    };
    run.outputs()
        .into_iter()
        .filter(|output| output.output.kind == ArtifactKind::Table)
        .filter(|output| is_shown(&output.full(), output.node))
        .map(|output| output.full())
        .collect()
}
