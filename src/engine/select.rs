//! Which nodes a run is about: `--only`, `--from`, `--until` and `--force`.

use std::collections::HashSet;

use petgraph::Direction;
use petgraph::graph::NodeIndex;

use super::EngineError;
use crate::graph::Graph;

/// Each name is a stage or a node. Several restrictions hold together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    /// Just this; what it reads must be cached.
    pub only: Vec<String>,
    /// This and everything below it; what these read from elsewhere must be cached.
    pub from: Option<String>,
    /// This and everything it needs.
    pub until: Option<String>,
    /// Run again even if cached; `all` means every selected node.
    pub force: Vec<String>,
}

/// A selection on a graph.
#[derive(Debug)]
pub(super) struct Selected {
    pub(super) nodes: HashSet<NodeIndex>,
    /// Not selected, but read by what is: must be cached.
    pub(super) needed: HashSet<NodeIndex>,
    pub(super) forced: HashSet<NodeIndex>,
}

impl Selection {
    pub(super) fn apply(&self, graph: &Graph) -> Result<Selected, EngineError> {
        let mut nodes: HashSet<NodeIndex> = graph.order.iter().copied().collect();
        let mut keep = |kept: HashSet<NodeIndex>| nodes.retain(|index| kept.contains(index));
        if !self.only.is_empty() {
            keep(find(graph, &self.only)?);
        }
        if let Some(name) = &self.from {
            keep(reach(
                graph,
                find(graph, std::slice::from_ref(name))?,
                Direction::Outgoing,
            ));
        }
        if let Some(name) = &self.until {
            keep(reach(
                graph,
                find(graph, std::slice::from_ref(name))?,
                Direction::Incoming,
            ));
        }
        let needed = reach(graph, nodes.clone(), Direction::Incoming)
            .difference(&nodes)
            .copied()
            .collect();
        let forced = if self.force.iter().any(|name| name == "all") {
            nodes.clone()
        } else {
            find(graph, &self.force)?
        };
        Ok(Selected {
            nodes,
            needed,
            forced,
        })
    }
}

fn find(graph: &Graph, names: &[String]) -> Result<HashSet<NodeIndex>, EngineError> {
    let mut found = HashSet::new();
    for name in names {
        let nodes = graph.select(name);
        if nodes.is_empty() {
            let known = graph
                .order
                .iter()
                .flat_map(|&index| [&graph.dag[index].name, &graph.dag[index].stage]);
            let near = known
                .map(|known| (strsim::jaro_winkler(known, name), known))
                .max_by(|left, right| left.0.total_cmp(&right.0));
            let near = near
                .filter(|(likeness, _)| *likeness > 0.8)
                .map(|(_, known)| known.clone());
            return Err(EngineError::UnknownNode {
                name: name.clone(),
                near,
            });
        }
        found.extend(nodes);
    }
    Ok(found)
}

/// `start` and all that is reached from there.
fn reach(graph: &Graph, start: HashSet<NodeIndex>, direction: Direction) -> HashSet<NodeIndex> {
    let mut reached = start.clone();
    let mut pending: Vec<NodeIndex> = start.into_iter().collect();
    while let Some(index) = pending.pop() {
        for next in graph.dag.neighbors_directed(index, direction) {
            if reached.insert(next) {
                pending.push(next);
            }
        }
    }
    reached
}
