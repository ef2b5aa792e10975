//! What a run would do, and why; nothing is executed.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use petgraph::graph::NodeIndex;
use serde::{Deserialize, Serialize};

use super::select::Selected;
use super::{EngineError, EventKind, Executor, Resolve, Selection, Sink, sharing};
use crate::cache::{Artifact, Cache, Entry, ExternalError, Lookup};
use crate::digest::Digest;
use crate::graph::{Fingerprint, Graph, Manifest, Node, PartChange, PathInput, base_name};
use crate::ops::Catalog;

/// Why a node runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reason", rename_all = "snake_case")]
pub enum Reason {
    /// It has never finished in this pipeline.
    New,
    /// A part of its fingerprint is not what it was when the node last finished.
    Changed(PartChange),
    /// `--force`.
    Forced,
    /// Its result was there but is not usable.
    Damaged { problem: String },
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::New => f.write_str("first run"),
            Self::Changed(PartChange {
                part,
                old: Some(old),
                new: Some(new),
            }) => write!(f, "{part}: {old} → {new}"),
            Self::Changed(PartChange {
                part,
                old: None,
                new,
            }) => write!(f, "{part}: added {}", new.as_deref().unwrap_or_default()),
            Self::Changed(PartChange {
                part,
                old: Some(old),
                new: None,
            }) => write!(f, "{part}: removed {old}"),
            Self::Forced => f.write_str("forced"),
            Self::Damaged { problem } => f.write_str(problem),
        }
    }
}

/// What will happen to a node.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum NodeState {
    WillRun {
        reasons: Vec<Reason>,
    },
    /// These upstream nodes run; if what they give is what they gave before, this one is cached.
    MayRun {
        upstreams: Vec<String>,
    },
    Cached {
        fingerprint: Fingerprint,
        /// What it gave is in the shared cache only, and comes here once something reads it.
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        elsewhere: bool,
        #[serde(skip)]
        entry: Arc<Entry>,
    },
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NodePlan {
    pub name: String,
    pub op: String,
    #[serde(flatten)]
    pub state: NodeState,
}

impl NodePlan {
    pub fn is_cached(&self) -> bool {
        matches!(self.state, NodeState::Cached { .. })
    }
}

/// The nodes of a selection in order, and what was found out about their data and models on the way.
#[derive(Debug)]
pub struct Plan {
    pub nodes: Vec<NodePlan>,
    pub(super) indices: Vec<NodeIndex>,
    pub(super) selected: Arc<Selected>,
    pub(super) facts: Arc<HashMap<NodeIndex, Facts>>,
}

/// What a node reads from outside the graph: places on this machine and digests, by dotted param name.
#[derive(Debug, Clone, Default)]
pub(super) struct Facts {
    pub(super) paths: BTreeMap<String, PathBuf>,
    pub(super) path_digests: BTreeMap<String, Digest>,
    pub(super) models: BTreeMap<String, PathBuf>,
    pub(super) model_digests: BTreeMap<String, Digest>,
}

impl Facts {
    pub(super) fn manifest(&self, node: &Node, inputs: BTreeMap<String, Digest>) -> Manifest {
        Manifest::new(
            node,
            inputs,
            self.path_digests.clone(),
            self.model_digests.clone(),
        )
    }
}

impl Plan {
    /// Whether any node runs for sure or perhaps.
    pub fn has_work(&self) -> bool {
        !self.nodes.iter().all(NodePlan::is_cached)
    }

    /// The part of the plan that is about some nodes.
    pub fn part(&self, nodes: &HashSet<NodeIndex>) -> Self {
        let wanted = |(_, index): &(&NodePlan, &NodeIndex)| nodes.contains(index);
        let all = self.nodes.iter().zip(&self.indices).filter(wanted);
        let (nodes, indices) = all.map(|(plan, index)| (plan.clone(), *index)).unzip();
        Self {
            nodes,
            indices,
            selected: Arc::clone(&self.selected),
            facts: Arc::clone(&self.facts),
        }
    }

    /// The nodes in order.
    pub fn nodes_of<'a>(&'a self, graph: &'a Graph) -> impl Iterator<Item = &'a Node> {
        self.indices.iter().map(|index| &graph.dag[*index])
    }

    /// The nodes in order, and what each is made of but for the digests of its inputs.
    pub fn manifests<'a>(&'a self, graph: &'a Graph) -> impl Iterator<Item = (&'a Node, Manifest)> {
        manifests(graph, &self.indices, &self.facts)
    }

    /// What the run is asked to do: the same where every node is, and all are linked alike, whichever variants have them. Says
    /// nothing of results.
    pub fn request(&self, graph: &Graph) -> Digest {
        request(graph, &self.indices, &self.facts)
    }

    /// Whether a node that will or may run in this process needs the language-model runtime.
    pub fn needs_language_model(
        &self,
        graph: &Graph,
        catalog: &Catalog,
        executor: Option<&dyn Executor>,
    ) -> bool {
        let runs = |(plan, index): (&NodePlan, &NodeIndex)| {
            let node = &graph.dag[*index];
            !matches!(plan.state, NodeState::Cached { .. })
                && catalog.get(&node.op).is_some_and(|op| {
                    op.needs_language_model(node)
                        && !executor.is_some_and(|executor| executor.takes(op, node))
                })
        };
        self.nodes.iter().zip(&self.indices).any(runs)
    }
}

fn manifests<'a>(
    graph: &'a Graph,
    indices: &'a [NodeIndex],
    facts: &'a HashMap<NodeIndex, Facts>,
) -> impl Iterator<Item = (&'a Node, Manifest)> {
    indices.iter().map(|index| {
        let node = &graph.dag[*index];
        (node, facts[index].manifest(node, BTreeMap::new()))
    })
}

fn request(graph: &Graph, indices: &[NodeIndex], facts: &HashMap<NodeIndex, Facts>) -> Digest {
    let mut hasher = blake3::Hasher::new();
    for (node, manifest) in manifests(graph, indices, facts) {
        let inputs = node
            .inputs
            .iter()
            .map(|input| (&input.port, base_name(&input.node), &input.output));
        let inputs: Vec<_> = inputs.collect();
        serde_json::to_writer(&mut hasher, &(node.base(), manifest, inputs))
            .expect("a node is plain data");
    }
    hasher.finalize().into()
}

/// Hashes outside data, resolves models and looks every node up.
pub fn plan(
    graph: &Graph,
    cache: &Cache,
    selection: &Selection,
    resolver: &dyn Resolve,
    sink: &dyn Sink,
) -> Result<Plan, EngineError> {
    let selected = selection.apply(graph)?;
    let indices: Vec<NodeIndex> = graph
        .order
        .iter()
        .copied()
        .filter(|index| selected.nodes.contains(index) || selected.needed.contains(index))
        .collect();
    let mut facts = gather(graph, &indices, cache, resolver, sink)?;
    let mut planner = Planner {
        graph,
        cache,
        known: HashMap::new(),
        past: None,
    };
    planner.ask_shared(&indices, &facts, &selected.forced);
    sharing::tell_warnings(cache, sink);
    let mut nodes = Vec::with_capacity(indices.len());
    for &index in &indices {
        let node = &graph.dag[index];
        let state = planner.state(index, &facts[&index], selected.forced.contains(&index))?;
        if selected.needed.contains(&index) && !matches!(state, NodeState::Cached { .. }) {
            let below = graph
                .order
                .iter()
                .find(|below| selected.nodes.contains(below))
                .map(|&below| graph.dag[below].name.clone());
            return Err(EngineError::UpstreamNotCached {
                node: node.name.clone(),
                selected: below.unwrap_or_default(),
            });
        }
        nodes.push(NodePlan {
            name: node.name.clone(),
            op: node.op.clone(),
            state,
        });
    }
    for (plan, index) in nodes.iter().zip(&indices) {
        if let (false, Some(facts)) = (plan.is_cached(), facts.get_mut(index)) {
            fetch_the_rest(&graph.dag[*index], facts, cache, resolver, sink)?;
        }
    }
    Ok(Plan {
        nodes,
        indices,
        selected: Arc::new(selected),
        facts: Arc::new(facts),
    })
}

fn gather(
    graph: &Graph,
    indices: &[NodeIndex],
    cache: &Cache,
    resolver: &dyn Resolve,
    sink: &dyn Sink,
) -> Result<HashMap<NodeIndex, Facts>, EngineError> {
    let mut gathered = HashMap::with_capacity(indices.len());
    let mut models: Vec<(&crate::config::ModelSpec, (PathBuf, Digest))> = Vec::new();
    for &index in indices {
        let node = &graph.dag[index];
        let mut facts = Facts::default();
        for (param, data) in &node.paths {
            match data.digest {
                // What it holds is known without it: it is fetched if the node has to run.
                Some(digest) if data.url.is_some() && !data.path.exists() => {
                    facts.path_digests.insert(param.clone(), digest);
                }
                _ => find_data(node, param, data, &mut facts, cache, resolver, sink)?,
            }
        }
        for (param, spec) in &node.models {
            let known = models
                .iter()
                .find(|(other, _)| *other == spec)
                .map(|(_, found)| found.clone());
            let (place, digest) = match known {
                Some(found) => found,
                None => {
                    let found = resolver.resolve(spec);
                    let found = found.map_err(|source| EngineError::Model {
                        node: node.name.clone(),
                        param: param.clone(),
                        source,
                    })?;
                    models.push((spec, found.clone()));
                    found
                }
            };
            facts.models.insert(param.clone(), place);
            facts.model_digests.insert(param.clone(), digest);
        }
        gathered.insert(index, facts);
    }
    Ok(gathered)
}

/// Fetches the data that [`gather`] could do without.
fn fetch_the_rest(
    node: &Node,
    facts: &mut Facts,
    cache: &Cache,
    resolver: &dyn Resolve,
    sink: &dyn Sink,
) -> Result<(), EngineError> {
    for (param, data) in &node.paths {
        if !facts.paths.contains_key(param) {
            find_data(node, param, data, facts, cache, resolver, sink)?;
        }
    }
    Ok(())
}

/// Finds where the data of a path param lies, fetching it if it is not here, and what it holds.
fn find_data(
    node: &Node,
    param: &str,
    data: &PathInput,
    facts: &mut Facts,
    cache: &Cache,
    resolver: &dyn Resolve,
    sink: &dyn Sink,
) -> Result<(), EngineError> {
    let mut place = data.path.clone();
    if let Some(url) = data.url.as_ref().filter(|_| !place.exists()) {
        sink.event(&super::Event::now(EventKind::Fetching {
            what: url.clone(),
        }));
        place = resolver.fetch(data).map_err(|source| EngineError::Fetch {
            node: node.name.clone(),
            param: param.to_owned(),
            source,
        })?;
    }
    let digest = cache
        .digest_path(&place)
        .map_err(|source| data_error(node, param, source))?;
    facts.path_digests.insert(param.to_owned(), digest);
    facts.paths.insert(param.to_owned(), place);
    Ok(())
}

fn data_error(node: &Node, param: &str, source: ExternalError) -> EngineError {
    EngineError::Data {
        node: node.name.clone(),
        param: param.to_owned(),
        source,
    }
}

struct Planner<'a> {
    graph: &'a Graph,
    cache: &'a Cache,
    /// Outputs of nodes that are cached.
    known: HashMap<&'a str, Arc<Entry>>,
    /// Everything that ever finished, read when first needed.
    past: Option<Past>,
}

/// Manifests by all parts but the input digests.
type Past = HashMap<Fingerprint, Vec<BTreeMap<String, Digest>>>;

impl<'a> Planner<'a> {
    /// Looks in the shared cache for what is not here: for the pipeline as a whole first, then for all nodes at once whose
    /// inputs are known, level by level as far as results are found.
    fn ask_shared(
        &mut self,
        indices: &[NodeIndex],
        facts: &HashMap<NodeIndex, Facts>,
        forced: &HashSet<NodeIndex>,
    ) {
        if !self.cache.remote().is_some_and(|remote| remote.is_up()) {
            return;
        }
        let mut asked_whole = false;
        // What was found so far; the final word has `state`.
        let mut found: HashMap<&str, Arc<Entry>> = HashMap::new();
        loop {
            let mut missing = Vec::new();
            for &index in indices.iter().filter(|index| !forced.contains(index)) {
                let node = &self.graph.dag[index];
                if found.contains_key(node.name.as_str()) {
                    continue;
                }
                let inputs =
                    input_artifacts(node, |name| found.get(name).map(|entry| &entry.outputs));
                if inputs.len() < node.inputs.len() {
                    continue;
                }
                let digests = inputs
                    .iter()
                    .map(|(port, artifact)| (port.clone(), artifact.digest));
                let fingerprint = facts[&index]
                    .manifest(node, digests.collect())
                    .fingerprint();
                match self.cache.lookup(fingerprint) {
                    Ok(Lookup::Hit(entry)) => {
                        found.insert(&node.name, entry);
                    }
                    Ok(Lookup::Miss { .. }) => missing.push(fingerprint),
                    // Told when its state is worked out.
                    Err(_) => {}
                }
            }
            if missing.is_empty() {
                return;
            }
            let mut more = 0;
            if !std::mem::replace(&mut asked_whole, true) {
                let request = request(self.graph, indices, facts);
                more = self.cache.find_shared_pipeline(request);
            }
            if more == 0 {
                more = self.cache.find_shared(&missing);
            }
            if more == 0 {
                return;
            }
        }
    }

    fn state(
        &mut self,
        index: NodeIndex,
        facts: &Facts,
        forced: bool,
    ) -> Result<NodeState, EngineError> {
        let node = &self.graph.dag[index];
        let mut inputs = BTreeMap::new();
        let mut upstreams = Vec::new();
        for input in &node.inputs {
            match self
                .known
                .get(input.node.as_str())
                .and_then(|entry| entry.outputs.get(&input.output))
            {
                Some(artifact) => {
                    inputs.insert(input.port.clone(), artifact.digest);
                }
                None => upstreams.push(input.node.clone()),
            }
        }
        if !upstreams.is_empty() {
            upstreams.dedup();
            return self.state_below(node, facts, inputs, upstreams, forced);
        }
        let manifest = facts.manifest(node, inputs);
        let fingerprint = manifest.fingerprint();
        let lookup = if forced {
            Lookup::Miss { damaged: None }
        } else {
            self.cache.lookup(fingerprint)?
        };
        Ok(match lookup {
            Lookup::Hit(entry) => {
                self.known.insert(&node.name, Arc::clone(&entry));
                NodeState::Cached {
                    fingerprint,
                    elsewhere: !self.cache.is_here(&entry),
                    entry,
                }
            }
            Lookup::Miss { damaged } => {
                let reasons = reasons(
                    self.cache,
                    &self.graph.name,
                    node,
                    &manifest,
                    damaged,
                    forced,
                )?;
                NodeState::WillRun { reasons }
            }
        })
    }

    /// The state of a node some of whose inputs are not known yet: it runs for sure only if nothing that ever finished
    /// agrees with what is known.
    fn state_below(
        &mut self,
        node: &Node,
        facts: &Facts,
        known: BTreeMap<String, Digest>,
        upstreams: Vec<String>,
        forced: bool,
    ) -> Result<NodeState, EngineError> {
        if forced {
            return Ok(NodeState::WillRun {
                reasons: vec![Reason::Forced],
            });
        }
        let mut manifest = facts.manifest(node, BTreeMap::new());
        let own = manifest.fingerprint();
        let past = match &mut self.past {
            Some(past) => past,
            none => none.insert(read_past(self.cache)?),
        };
        let ports = node.inputs.len();
        let fits = |inputs: &BTreeMap<String, Digest>| {
            inputs.len() == ports
                && known
                    .iter()
                    .all(|(port, digest)| inputs.get(port) == Some(digest))
        };
        if past.get(&own).is_some_and(|seen| seen.iter().any(fits)) {
            return Ok(NodeState::MayRun { upstreams });
        }
        let Some(last) = self.cache.last_manifest(&self.graph.name, &node.name)? else {
            return Ok(NodeState::WillRun {
                reasons: vec![Reason::New],
            });
        };
        // Inputs not known yet are no reason of their own.
        manifest.inputs = last.inputs.clone();
        manifest.inputs.retain(|port, _| node.input(port).is_some());
        manifest.inputs.extend(known);
        Ok(NodeState::WillRun {
            reasons: manifest
                .diff(&last)
                .into_iter()
                .map(Reason::Changed)
                .collect(),
        })
    }
}

fn read_past(cache: &Cache) -> Result<Past, EngineError> {
    let mut past = Past::new();
    for manifest in cache.all_manifests()? {
        let mut manifest = (*manifest).clone();
        let inputs = std::mem::take(&mut manifest.inputs);
        past.entry(manifest.fingerprint()).or_default().push(inputs);
    }
    Ok(past)
}

/// Why a node whose inputs are all known runs.
pub(super) fn reasons(
    cache: &Cache,
    pipeline: &str,
    node: &Node,
    manifest: &Manifest,
    damaged: Option<String>,
    forced: bool,
) -> Result<Vec<Reason>, EngineError> {
    if forced {
        return Ok(vec![Reason::Forced]);
    }
    if let Some(problem) = damaged {
        return Ok(vec![Reason::Damaged { problem }]);
    }
    let Some(last) = cache.last_manifest(pipeline, &node.name)? else {
        return Ok(vec![Reason::New]);
    };
    Ok(manifest
        .diff(&last)
        .into_iter()
        .map(Reason::Changed)
        .collect())
}

/// The artifacts that feed a node, by port.
pub(super) fn input_artifacts<'a>(
    node: &Node,
    outputs: impl Fn(&str) -> Option<&'a BTreeMap<String, Artifact>>,
) -> BTreeMap<String, Artifact> {
    let artifact = |input: &crate::graph::Input| {
        Some((
            input.port.clone(),
            outputs(&input.node)?.get(&input.output)?.clone(),
        ))
    };
    node.inputs.iter().filter_map(artifact).collect()
}
