//! A run as a whole: its record and the graph it was about.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use super::{GraphNode, Origin, OutputView, RunGraph, RunView, show};
use crate::digest::Digest;
use crate::graph::{Fingerprint, Manifest};

#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// `runs/<id>/`.
    pub folder: PathBuf,
    pub view: RunView,
    pub graph: RunGraph,
}

/// An output of a node.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NodeOutput<'a> {
    pub node: &'a str,
    pub output: &'a OutputView,
}

impl NodeOutput<'_> {
    /// `split.train.rows`.
    pub fn full(&self) -> String {
        format!("{}.{}", self.node, self.output.name)
    }
}

impl Run {
    /// Reads `runs/<id>/`.
    pub fn read(folder: &Path) -> std::io::Result<Self> {
        Ok(Self {
            folder: folder.to_owned(),
            view: show(folder)?,
            graph: RunGraph::read(folder)?,
        })
    }

    pub fn id(&self) -> &str {
        &self.view.head.id
    }

    /// The outputs of all nodes that have some, in the order of the graph.
    pub fn outputs(&self) -> Vec<NodeOutput<'_>> {
        let names = self.graph.nodes.iter().enumerate();
        let places: HashMap<&str, usize> = names
            .map(|(place, node)| (node.name.as_str(), place))
            .collect();
        let mut nodes: Vec<_> = self.view.nodes.iter().collect();
        nodes.sort_by_key(|node| {
            places
                .get(node.name.as_str())
                .copied()
                .unwrap_or(usize::MAX)
        });
        nodes
            .into_iter()
            .flat_map(|node| {
                node.outputs.iter().map(|output| NodeOutput {
                    node: &node.name,
                    output,
                })
            })
            .collect()
    }

    /// What an input was in this run; `None` where it was never made.
    pub fn artifact(&self, origin: &Origin) -> Option<&OutputView> {
        self.view
            .node(&origin.node)?
            .outputs
            .iter()
            .find(|output| output.name == origin.output)
    }

    /// The manifest of a node with the digests of its inputs as they were; `None` where one was not made.
    pub fn manifest(&self, node: &GraphNode) -> Option<Manifest> {
        let digest = |(port, origin): (&String, &Origin)| {
            Some((port.clone(), self.artifact(origin)?.digest))
        };
        let inputs: Option<BTreeMap<String, Digest>> = node.inputs.iter().map(digest).collect();
        Some(node.manifest_with(inputs?))
    }

    /// The fingerprint of a node, also of one that did not finish.
    pub fn fingerprint(&self, name: &str) -> Option<Fingerprint> {
        let known = self.view.node(name).and_then(|node| node.fingerprint);
        known.or_else(|| {
            self.graph
                .node(name)
                .and_then(|node| self.manifest(node))
                .map(|manifest| manifest.fingerprint())
        })
    }

    /// The name people know an output by: `clean.rows` for `clean.keep.rows`, `questions` for a stage with one output.
    pub fn short_name(&self, full: &str) -> String {
        let exported = self
            .view
            .head
            .exports
            .iter()
            .find(|(_, target)| *target == full);
        let name = exported.map_or(full, |(name, _)| name);
        let Some((owner, _)) = name.rsplit_once('.') else {
            return name.to_owned();
        };
        let is_only = if exported.is_some() {
            let of_stage = |other: &&String| {
                other
                    .rsplit_once('.')
                    .is_some_and(|(stage, _)| stage == owner)
            };
            self.view.head.exports.keys().filter(of_stage).count() == 1
        } else {
            self.view
                .node(owner)
                .is_some_and(|node| node.outputs.len() == 1)
        };
        if is_only { owner } else { name }.to_owned()
    }
}
