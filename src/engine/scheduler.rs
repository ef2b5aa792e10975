//! The scheduler: one thread decides, others run nodes; nodes found in the cache never leave the deciding thread.

use std::collections::{BTreeMap, HashMap};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::execute::{Stopped, Task, caught, execute};
use super::outcome::{Failure, NodeOutcome};
use super::plan::{NodeState, Plan, Reason, input_artifacts, reasons};
use super::sharing::{Sharing, tell_warnings};
use super::slots::{Slots, Taken};
use super::{EngineError, Event, EventKind, NodeStatus, RunOptions, Sink};
use crate::cache::{Artifact, Cache, Entry, Lookup};
use crate::graph::{Fingerprint, Graph, Manifest};
use crate::ops::{Catalog, OpError};

type Finished = (usize, Taken, Result<Arc<Entry>, Stopped>, f64);

pub(super) struct Scheduler<'run> {
    graph: &'run Graph,
    catalog: &'run Catalog,
    cache: &'run Cache,
    plan: &'run Plan,
    options: &'run RunOptions,
    sink: &'run dyn Sink,
    sharing: &'run Sharing<'run>,
    /// Results that were taken for found until their content could not be had, by position.
    lost: HashMap<usize, Arc<Entry>>,
    /// Positions in the plan.
    names: HashMap<&'run str, usize>,
    /// How many inputs a node still waits for.
    waiting: Vec<usize>,
    below: Vec<Vec<usize>>,
    entries: Vec<Option<Arc<Entry>>>,
    ended: Vec<bool>,
    /// By position, so that what comes first in the pipeline starts first.
    ready: BTreeMap<usize, (Task<'run>, Vec<Reason>)>,
    /// Which node makes the result of a fingerprint, from the time it is ready until it ends.
    makers: HashMap<Fingerprint, usize>,
    making: Vec<Option<Fingerprint>>,
    /// Nodes that would make the same as another does; they are looked up again when it ends.
    twins: HashMap<usize, Vec<usize>>,
    /// Nodes whose inputs have just become known, and nodes to be skipped because of another.
    known: Vec<usize>,
    slots: Slots,
    running: usize,
    pub(super) outcomes: Vec<NodeOutcome>,
    /// The first error.
    pub(super) headline: Option<Failure>,
}

impl<'run> Scheduler<'run> {
    pub(super) fn new(
        graph: &'run Graph,
        catalog: &'run Catalog,
        cache: &'run Cache,
        plan: &'run Plan,
        options: &'run RunOptions,
        sink: &'run dyn Sink,
        sharing: &'run Sharing<'run>,
    ) -> Self {
        let names: HashMap<&str, usize> = plan
            .nodes
            .iter()
            .enumerate()
            .map(|(position, node)| (node.name.as_str(), position))
            .collect();
        let count = plan.indices.len();
        let (mut waiting, mut below) = (vec![0; count], vec![Vec::new(); count]);
        for (position, &index) in plan.indices.iter().enumerate() {
            for input in &graph.dag[index].inputs {
                if let Some(&above) = names.get(input.node.as_str()) {
                    below[above].push(position);
                    waiting[position] += 1;
                }
            }
        }
        let most = options
            .executor
            .as_ref()
            .map_or(0, |executor| executor.most());
        let slots = Slots::new(options.jobs, &options.gpus, most);
        Self {
            graph,
            catalog,
            cache,
            plan,
            options,
            sink,
            sharing,
            lost: HashMap::new(),
            names,
            known: (0..count)
                .rev()
                .filter(|&position| waiting[position] == 0)
                .collect(),
            waiting,
            below,
            entries: vec![None; count],
            ended: vec![false; count],
            ready: BTreeMap::new(),
            makers: HashMap::new(),
            making: vec![None; count],
            twins: HashMap::new(),
            slots,
            running: 0,
            outcomes: Vec::with_capacity(count),
            headline: None,
        }
    }

    /// To the end of the last node.
    pub(super) fn run(&mut self) {
        let (tasks, inbox) = mpsc::channel::<(usize, Taken, Task<'run>)>();
        let inbox = Mutex::new(inbox);
        let (done, finished) = mpsc::channel::<Finished>();
        let (cache, options, sink) = (self.cache, self.options, self.sink);
        let sharing = self.sharing;
        std::thread::scope(|scope| {
            let inbox = &inbox;
            let mut workers = 0;
            loop {
                self.settle();
                for (position, taken, task) in self.start() {
                    self.running += 1;
                    if workers < self.running {
                        workers += 1;
                        let done = done.clone();
                        let spawned = std::thread::Builder::new()
                            .name(format!("worker {workers}"))
                            .spawn_scoped(scope, move || {
                                work(inbox, &done, cache, options, sink, sharing);
                            });
                        if let Err(error) = spawned {
                            workers -= 1;
                            // Another worker will come to it; without any, the node cannot run at all.
                            if workers == 0 {
                                self.finish(position, taken, Err(error.into()), 0.0);
                                continue;
                            }
                        }
                    }
                    if let Err(mpsc::SendError((position, taken, _))) =
                        tasks.send((position, taken, task))
                    {
                        self.finish(
                            position,
                            taken,
                            Err(OpError::new("no worker is left").into()),
                            0.0,
                        );
                    }
                }
                if self.running == 0 && self.known.is_empty() {
                    break;
                }
                if self.running > 0 {
                    let Ok((position, taken, result, seconds)) = finished.recv() else {
                        break;
                    };
                    self.finish(position, taken, result, seconds);
                }
            }
            drop(tasks);
        });
        self.skip_the_rest();
    }

    /// Looks up every node whose inputs are known, until those left have to run.
    fn settle(&mut self) {
        self.ask_shared();
        while let Some(position) = self.known.pop() {
            if let Err(error) = self.look_up(position) {
                let error = OpError::with_help(error.to_string(), error.help().unwrap_or_default());
                self.fail(position, &error, 0.0);
            }
        }
    }

    /// Looks all nodes whose inputs have just become known up in the shared cache at once.
    fn ask_shared(&self) {
        if !self.cache.remote().is_some_and(|remote| remote.is_up()) {
            return;
        }
        let missing = self.known.iter().filter_map(|&position| {
            let planned = matches!(self.plan.nodes[position].state, NodeState::Cached { .. });
            let forced = self
                .plan
                .selected
                .forced
                .contains(&self.plan.indices[position]);
            if planned || forced || !self.unknown(position).is_empty() {
                return None;
            }
            let fingerprint = self.manifest(position).0.fingerprint();
            let lookup = self.cache.lookup(fingerprint);
            matches!(lookup, Ok(Lookup::Miss { .. })).then_some(fingerprint)
        });
        let missing: Vec<_> = missing.collect();
        self.cache.find_shared(&missing);
        tell_warnings(self.cache, self.sink);
    }

    /// The nodes a node reads that have no result: those that have to run again after all.
    fn unknown(&self, position: usize) -> Vec<usize> {
        let inputs = &self.graph.dag[self.plan.indices[position]].inputs;
        let above = inputs
            .iter()
            .filter_map(|input| self.names.get(input.node.as_str()).copied());
        above.filter(|&above| !self.ended[above]).collect()
    }

    /// What a node is made of now that its inputs are known, and these inputs.
    fn manifest(&self, position: usize) -> (Manifest, BTreeMap<String, Artifact>) {
        let index = self.plan.indices[position];
        let node = &self.graph.dag[index];
        let outputs = |name: &str| {
            self.entries[*self.names.get(name)?]
                .as_ref()
                .map(|entry| &entry.outputs)
        };
        let inputs = input_artifacts(node, outputs);
        let digests = inputs
            .iter()
            .map(|(port, artifact)| (port.clone(), artifact.digest));
        (
            self.plan.facts[&index].manifest(node, digests.collect()),
            inputs,
        )
    }

    fn look_up(&mut self, position: usize) -> Result<(), EngineError> {
        if let NodeState::Cached { entry, .. } = &self.plan.nodes[position].state
            && !self.lost.contains_key(&position)
        {
            self.succeed(position, NodeStatus::Cached, Arc::clone(entry), 0.0);
            return Ok(());
        }
        for above in self.unknown(position) {
            self.wait(position, above);
        }
        if self.waiting[position] > 0 {
            return Ok(());
        }
        let index = self.plan.indices[position];
        let node = &self.graph.dag[index];
        let facts = &self.plan.facts[&index];
        let (manifest, inputs) = self.manifest(position);
        let fingerprint = manifest.fingerprint();
        if let Some(&maker) = self.makers.get(&fingerprint) {
            self.twins.entry(maker).or_default().push(position);
            return Ok(());
        }
        let forced = self.plan.selected.forced.contains(&index);
        let lookup = if forced {
            Lookup::Miss { damaged: None }
        } else {
            self.cache.lookup(fingerprint)?
        };
        match lookup {
            Lookup::Hit(entry) => self.succeed(position, NodeStatus::Cached, entry, 0.0),
            Lookup::Miss { damaged } => {
                let why = match &self.plan.nodes[position].state {
                    // Found when the plan was made; the second look no longer sees what was damaged.
                    NodeState::WillRun { reasons }
                        if reasons
                            .iter()
                            .any(|reason| matches!(reason, Reason::Damaged { .. })) =>
                    {
                        reasons.clone()
                    }
                    _ => reasons(
                        self.cache,
                        &self.graph.name,
                        node,
                        &manifest,
                        damaged,
                        forced,
                    )?,
                };
                let (pipeline, root, run) = (
                    self.graph.name.as_str(),
                    self.graph.root.as_path(),
                    self.catalog.run_fn(&node.op),
                );
                let op = self.catalog.get(&node.op);
                let task = Task {
                    elsewhere: op.is_some_and(|op| self.options.is_elsewhere(op, node)),
                    op,
                    pipeline,
                    root,
                    node,
                    run,
                    manifest,
                    inputs,
                    facts,
                    gpus: Vec::new(),
                };
                self.makers.insert(fingerprint, position);
                self.making[position] = Some(fingerprint);
                self.ready.insert(position, (task, why));
            }
        }
        Ok(())
    }

    /// Takes the ready nodes for which there are slots.
    fn start(&mut self) -> Vec<(usize, Taken, Task<'run>)> {
        let mut fitting: Vec<(usize, Taken)> = Vec::new();
        if self.options.cancel.is_cancelled() {
            return Vec::new();
        }
        for (&position, (task, _)) in &self.ready {
            if !self.slots.any_free() {
                break;
            }
            let taken = if task.elsewhere {
                self.slots.take_elsewhere()
            } else {
                self.slots.take(task.node.resources)
            };
            fitting.extend(taken.map(|taken| (position, taken)));
        }
        let mut started = Vec::with_capacity(fitting.len());
        for (position, taken) in fitting {
            if let Some((mut task, reasons)) = self.ready.remove(&position) {
                task.gpus.clone_from(&taken.gpus);
                self.sink.event(&Event::now(EventKind::NodeStarted {
                    node: task.node.name.clone(),
                    op: task.node.op.clone(),
                    fingerprint: Some(task.manifest.fingerprint()),
                    reasons,
                }));
                started.push((position, taken, task));
            }
        }
        started
    }

    fn finish(
        &mut self,
        position: usize,
        taken: Taken,
        result: Result<Arc<Entry>, Stopped>,
        seconds: f64,
    ) {
        self.running -= 1;
        self.slots.give_back(taken);
        match result {
            Ok(entry) => {
                self.compare_with_lost(position, &entry);
                self.succeed(position, NodeStatus::Ran, entry, seconds);
            }
            Err(Stopped::Lost(ports)) => self.make_again(position, &ports),
            Err(Stopped::Failed(OpError::Cancelled)) => self.skip(position, "interrupted", seconds),
            Err(Stopped::Failed(error)) => self.fail(position, &error, seconds),
        }
    }

    /// Puts a node back until those above it have run after all whose results were found without their content.
    fn make_again(&mut self, position: usize, ports: &[String]) {
        if let Some(fingerprint) = self.making[position].take() {
            self.makers.remove(&fingerprint);
        }
        let inputs = &self.graph.dag[self.plan.indices[position]].inputs;
        let mut above: Vec<usize> = inputs
            .iter()
            .filter(|input| ports.contains(&input.port))
            .filter_map(|input| self.names.get(input.node.as_str()).copied())
            .collect();
        above.sort_unstable();
        above.dedup();
        for above in above {
            // Otherwise it is on its way already, or has run meanwhile.
            if self.ended[above]
                && !self.lost.contains_key(&above)
                && let Some(entry) = self.entries[above].take()
            {
                self.cache.set_lost(entry.fingerprint);
                self.lost.insert(above, entry);
                self.ended[above] = false;
                let name = self.plan.nodes[above].name.as_str();
                self.outcomes.retain(|outcome| outcome.name != name);
                self.sink.event(&Event::now(EventKind::NodeReopened {
                    node: name.to_owned(),
                }));
                self.known.push(above);
            }
        }
        // It waits there for what has no result.
        self.known.push(position);
    }

    fn wait(&mut self, position: usize, above: usize) {
        self.below[above].push(position);
        self.waiting[position] += 1;
    }

    /// Nodes below may have been found by what the lost result was; the next run looks at them anew.
    fn compare_with_lost(&self, position: usize, entry: &Entry) {
        let Some(lost) = self.lost.get(&position) else {
            return;
        };
        let digests = |entry: &Entry| -> Vec<_> {
            let artifacts = entry.outputs.values();
            artifacts.map(|artifact| artifact.digest).collect()
        };
        if digests(lost) != digests(entry) {
            let message = format!(
                "`{}` gave something else than is known of it in the shared cache: run again to bring what is below it up to date",
                self.plan.nodes[position].name
            );
            self.sink.event(&Event::now(EventKind::Log {
                node: None,
                level: super::Level::Warn,
                message,
            }));
        }
    }

    fn succeed(&mut self, position: usize, status: NodeStatus, entry: Arc<Entry>, seconds: f64) {
        let outcome = NodeOutcome {
            status,
            seconds,
            fingerprint: Some(entry.fingerprint),
            outputs: entry.outputs.clone(),
            metrics: entry.metrics.clone(),
            ..self.outcome(position)
        };
        self.end(position, outcome);
        match status {
            NodeStatus::Cached => self
                .sharing
                .note_cached(entry.fingerprint, self.cache.is_here(&entry)),
            _ => self.sharing.offer(entry.fingerprint),
        }
        self.entries[position] = Some(entry);
        for below in std::mem::take(&mut self.below[position]) {
            self.waiting[below] -= 1;
            if self.waiting[below] == 0 && !self.ended[below] {
                self.known.push(below);
            }
        }
    }

    fn fail(&mut self, position: usize, error: &OpError, seconds: f64) {
        let outcome = NodeOutcome {
            status: NodeStatus::Failed,
            seconds,
            error: Some(error.to_string()),
            ..self.outcome(position)
        };
        let name = outcome.name.clone();
        self.headline
            .get_or_insert_with(|| Failure::of(&name, error));
        self.end(position, outcome);
        let mut pending = std::mem::take(&mut self.below[position]);
        while let Some(below) = pending.pop() {
            if !self.ended[below] {
                self.skip(below, &format!("`{name}` failed"), 0.0);
                pending.extend(std::mem::take(&mut self.below[below]));
            }
        }
    }

    fn skip(&mut self, position: usize, why: &str, seconds: f64) {
        let outcome = NodeOutcome {
            status: NodeStatus::Skipped,
            seconds,
            error: Some(why.to_owned()),
            ..self.outcome(position)
        };
        self.end(position, outcome);
    }

    fn skip_the_rest(&mut self) {
        for position in 0..self.ended.len() {
            if !self.ended[position] {
                self.skip(position, "interrupted", 0.0);
            }
        }
    }

    fn outcome(&self, position: usize) -> NodeOutcome {
        let plan = &self.plan.nodes[position];
        NodeOutcome {
            name: plan.name.clone(),
            op: plan.op.clone(),
            status: NodeStatus::Skipped,
            seconds: 0.0,
            fingerprint: None,
            outputs: BTreeMap::<String, Artifact>::new(),
            metrics: BTreeMap::new(),
            error: None,
        }
    }

    fn end(&mut self, position: usize, outcome: NodeOutcome) {
        self.ended[position] = true;
        if let Some(fingerprint) = self.making[position].take() {
            self.makers.remove(&fingerprint);
        }
        let twins = self.twins.remove(&position).unwrap_or_default();
        self.known
            .extend(twins.into_iter().filter(|&twin| !self.ended[twin]));
        self.sink.event(&Event::now(outcome.event()));
        self.outcomes.push(outcome);
    }
}

/// Runs tasks until there are no more.
fn work(
    inbox: &Mutex<Receiver<(usize, Taken, Task<'_>)>>,
    done: &Sender<Finished>,
    cache: &Cache,
    options: &RunOptions,
    sink: &dyn Sink,
    sharing: &Sharing<'_>,
) {
    loop {
        let next = inbox.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((position, taken, task)) = next else {
            return;
        };
        let start = Instant::now();
        // Whoever waits for this node would wait forever if this thread ended.
        let result = caught("the engine", || {
            execute(task, cache, options, sink, sharing)
        });
        if done
            .send((position, taken, result, start.elapsed().as_secs_f64()))
            .is_err()
        {
            return;
        }
    }
}
