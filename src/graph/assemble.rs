//! From drafts and wires to the graph.

use std::collections::{BTreeMap, HashSet};

use petgraph::graph::{DiGraph, NodeIndex};

use crate::config::PipelineSpec;
use crate::graph::draft::{Draft, From, Stage, Wire};
use crate::graph::instances::Instances;
use crate::graph::merge::{label, merge};
use crate::graph::{Graph, GraphVariant, Input, Link, Shown};

/// A pipeline in which nothing is wrong, in parts.
pub(super) struct Compiled<'a> {
    pub spec: &'a PipelineSpec,
    pub instances: &'a Instances<'a>,
    pub drafts: Vec<Draft>,
    pub stages: &'a [Stage<'a>],
    pub wires: Vec<Vec<Wire>>,
    /// Drafts in topological order.
    pub order: Vec<usize>,
    /// What is shown, by variant.
    pub shown: Vec<Vec<(String, From)>>,
}

impl Compiled<'_> {
    pub(super) fn assemble(mut self) -> Graph {
        let of_stage = |draft: usize| {
            let stage = self.drafts[draft].stage;
            self.instances.list[stage].variants.clone()
        };
        let merged = match &self.spec.matrix {
            Some(_) => Some(merge(&self.drafts, &self.wires, &self.order, of_stage)),
            None => None,
        };
        let stands_for = |draft: usize| {
            merged
                .as_ref()
                .map_or(draft, |merged| merged.stands_for[draft])
        };
        // Names that only some variants know, and exports and shown tables by the names that were written.
        let mut variants = Vec::new();
        if let (Some(matrix), Some(merged)) = (&self.spec.matrix, &merged) {
            for (draft, of) in self.drafts.iter_mut().zip(&merged.variants) {
                let label = label(matrix, of);
                if !label.is_empty() {
                    draft.node.name = format!("{}@{label}", draft.node.name);
                }
            }
            variants = matrix
                .variants
                .iter()
                .map(|variant| GraphVariant {
                    label: variant.label.clone(),
                    params: matrix
                        .axes
                        .iter()
                        .zip(&variant.choice)
                        .map(|(axis, &value)| {
                            (axis.key.clone(), axis.values[value].value.to_json())
                        })
                        .collect(),
                    seed: variant.seed,
                    nodes: HashSet::new(),
                    exports: BTreeMap::new(),
                    shown: Vec::new(),
                })
                .collect();
        }
        let mut exports = vec![BTreeMap::new(); self.instances.variants()];
        for (stage, instance) in self.stages.iter().zip(&self.instances.list) {
            for (name, from) in &stage.exports {
                let target = self.drafts[stands_for(from.draft)].node.base();
                let target = format!("{target}.{}", from.output);
                for &variant in &instance.variants {
                    exports[variant].insert(format!("{}.{name}", stage.call.name), target.clone());
                }
            }
        }
        let mut shown: Vec<Vec<Shown>> = Vec::with_capacity(self.shown.len());
        for tables in std::mem::take(&mut self.shown) {
            let table = |(name, from): (String, From)| Shown {
                name,
                node: self.drafts[stands_for(from.draft)].node.name.clone(),
                output: from.output,
            };
            shown.push(tables.into_iter().map(table).collect());
        }
        // Nodes keep the order in which they were drafted.
        let mut places = vec![NodeIndex::end(); self.drafts.len()];
        let mut dag = DiGraph::with_capacity(self.drafts.len(), self.drafts.len());
        for (index, draft) in std::mem::take(&mut self.drafts).into_iter().enumerate() {
            if stands_for(index) == index {
                places[index] = dag.add_node(draft.node);
            }
        }
        for (index, wires) in std::mem::take(&mut self.wires).into_iter().enumerate() {
            if stands_for(index) != index {
                continue;
            }
            for wire in wires {
                let (from, to) = (places[stands_for(wire.from.draft)], places[index]);
                let input = Input {
                    port: wire.port.clone(),
                    node: dag[from].name.clone(),
                    output: wire.from.output.clone(),
                };
                dag[to].inputs.push(input);
                let link = Link {
                    output: wire.from.output,
                    input: wire.port,
                };
                dag.add_edge(from, to, link);
            }
        }
        if let Some(merged) = &merged {
            for (index, of) in merged.variants.iter().enumerate() {
                for &variant in of {
                    variants[variant].nodes.insert(places[index]);
                }
            }
            for (variant, (exports, shown)) in
                variants.iter_mut().zip(exports.iter_mut().zip(&mut shown))
            {
                variant.exports = std::mem::take(exports);
                variant.shown = std::mem::take(shown);
            }
        }
        let order = self
            .order
            .iter()
            .filter(|&&draft| stands_for(draft) == draft);
        Graph {
            name: self.spec.name.clone(),
            profile: self.spec.profile.clone(),
            seed: self.spec.seed,
            path: self.spec.path.clone(),
            root: self.spec.root.clone(),
            order: order.map(|&draft| places[draft]).collect(),
            dag,
            exports: exports.swap_remove(0),
            shown: shown.swap_remove(0),
            variants,
        }
    }
}
