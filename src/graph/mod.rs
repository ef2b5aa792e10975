//! The compiled pipeline: nodes that are single op calls, and the links between their ports.
//!
//! Made by [`compile`] from a checked spec; run by the engine. Pure: no database, no network, no tensors.

mod assemble;
mod columns;
mod compile;
mod draft;
mod expand;
mod fingerprint;
mod instances;
mod merge;
mod node;
mod order;
mod params;
mod render;
#[cfg(test)]
mod tests;
mod wire;

pub use compile::{compile, compile_without_data};
pub use fingerprint::{Fingerprint, Manifest, PartChange};
pub use node::{Input, Node, Output, PathInput, Resources, StageFile, base_name};

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;

use petgraph::graph::{DiGraph, NodeIndex};

/// A link from an output of one node to an input of another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub output: String,
    pub input: String,
}

/// A table that is printed at the end of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// As the user knows it: `evaluate.summary`.
    pub name: String,
    pub node: String,
    pub output: String,
}

/// One variant of a pipeline with a matrix: a part of the graph.
#[derive(Debug)]
pub struct GraphVariant {
    /// `r=8,learning_rate=0.0005`.
    pub label: String,
    /// The values that make it, by key.
    pub params: Vec<(String, serde_json::Value)>,
    pub seed: u64,
    pub nodes: HashSet<NodeIndex>,
    /// As [`Graph::exports`], with nodes as they are called where there is no matrix.
    pub exports: BTreeMap<String, String>,
    /// As [`Graph::shown`].
    pub shown: Vec<Shown>,
}

#[derive(Debug)]
pub struct Graph {
    /// The pipeline's `name:`.
    pub name: String,
    pub profile: Option<String>,
    pub seed: u64,
    /// The pipeline file.
    pub path: PathBuf,
    /// The project folder: see `config::project_root`.
    pub root: PathBuf,
    pub dag: DiGraph<Node, Link>,
    /// A topological order that keeps the order of declaration where it is free.
    pub order: Vec<NodeIndex>,
    /// The outputs stages declare (`split.train`) and the node outputs behind them (`split.draw.train`).
    pub exports: BTreeMap<String, String>,
    /// What stages show by themselves, in the order of the pipeline, then what the pipeline's `show:` names.
    pub shown: Vec<Shown>,
    /// The variants of a matrix, whose nodes are all in `dag`; empty where there is none. With a matrix, `exports` and `shown` are
    /// empty: each variant has its own.
    pub variants: Vec<GraphVariant>,
}

impl Graph {
    pub fn node(&self, name: &str) -> Option<NodeIndex> {
        self.dag
            .node_indices()
            .find(|&index| self.dag[index].name == name)
    }

    /// The nodes of a stage, or the one node of that name; the nodes of all variants where the name says nothing of them.
    pub fn select(&self, stage_or_node: &str) -> Vec<NodeIndex> {
        let matches = |index: &NodeIndex| {
            let node = &self.dag[*index];
            node.name == stage_or_node
                || node.stage == stage_or_node
                || node.base() == stage_or_node
        };
        self.order.iter().copied().filter(matches).collect()
    }
}
