//! `flow run`: does what a pipeline says.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;

use super::arguments::{PipelineArguments, SelectionArguments};
use super::error::{CliError, Exit};
use super::executor::Chosen;
use super::folders::Folders;
use super::output::Output;
use super::resolve::Outside;
use super::{gpus, handover, interrupt, matrix, plan, results, shared, tracking};
use crate::cache::{Cache, Holder, RunLock};
use crate::config::{EXECUTORS, ModelSpec, PipelineSpec, display};
use crate::engine::{
    self, CancelToken, Event, NodeOutcome, NodeStatus, Plan, RunOptions, RunOutcome, RunState, Sink,
};
use crate::graph::{Graph, GraphVariant, Node, base_name, compile};
use crate::insight::{InsightError, report};
use crate::ops::Catalog;
use crate::runs::{self, GraphText, NewRun, Recorder, Run, VariantOf, log_path};
use crate::tracking::{Settings, Tracker};
use crate::ui::seconds;

/// Run a pipeline; what is cached is not done again
///
/// To resume a run that failed or was interrupted, type the same command again.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    pipeline: PipelineArguments,

    #[command(flatten)]
    selection: SelectionArguments,

    /// Only show what would be run, as `flow plan` does
    #[arg(long)]
    dry_run: bool,

    /// How many nodes run at once [default: the number of CPU cores]
    #[arg(long, short, value_name = "N")]
    jobs: Option<NonZeroU32>,

    /// Send nothing over the network
    #[arg(long)]
    offline: bool,

    /// Where scripts, judges and everything with a model run [default: `executor.use` of the pipeline, or local]
    #[arg(long, value_name = "NAME", value_parser = EXECUTORS)]
    executor: Option<String>,
}

pub fn run(arguments: &Arguments, catalog: &Catalog, output: &Output) -> Result<Exit, CliError> {
    if arguments.dry_run {
        plan::show(
            &arguments.pipeline,
            &arguments.selection,
            arguments.offline,
            false,
            catalog,
            output,
        )?;
        return Ok(Exit::Ok);
    }
    let spec = arguments.pipeline.load()?;
    let graph = compile(&spec, catalog)?;
    remark(&spec, output);
    let settings = tracking::settings(spec.tracking.as_ref(), &graph.name, arguments.offline)?;
    let folders = Folders::of_pipeline(&spec);
    let cancel = CancelToken::default();
    let chosen = Chosen::of(arguments.executor.as_deref(), &spec, warn)?;
    let leaving = chosen.clone();
    interrupt::cancel_on_signal(&cancel, *output, move || leaving.abandon())?;
    let executor = chosen.executor();
    let mut id = runs::new_id(&folders.runs)?;
    let mut cache = open_cache(&folders, &id, &cancel, output)?;
    if runs::is_taken(&folders.runs, &id) {
        // The run that was waited for took it too, as may be after the clock was set back.
        id = runs::new_id(&folders.runs)?;
    }
    shared::connect(&mut cache, &folders, arguments.offline)?;
    let screen = output.sink();
    let outside = Outside {
        root: &folders.root,
        home: &folders.home,
        offline: arguments.offline,
        cache: &cache,
        sink: &*screen,
    };
    let plan = engine::plan(
        &graph,
        &cache,
        &arguments.selection.selection(),
        &outside,
        &*screen,
    )?;
    if handover::needed(&plan, &graph, catalog, &*executor) {
        // The lock goes with the cache; the other program takes it again.
        drop(cache);
        return Err(handover::to_language_model());
    }
    let project = Project {
        texts: plan
            .manifests(&graph)
            .map(|(node, manifest)| (node.name.as_str(), GraphText::node(node, manifest)))
            .collect(),
        spec: &spec,
        graph: &graph,
        folders: &folders,
        settings: settings.as_ref(),
    };
    if let Some(settings) = &settings {
        tracking::warn(settings, output);
    }
    let options = RunOptions {
        id: id.clone(),
        jobs: arguments.jobs.map_or_else(cores, NonZeroU32::get),
        gpus: gpus::visible(),
        offline: arguments.offline,
        home: folders.home.clone(),
        cancel,
        executor: Some(executor),
    };
    let go = |sink: &dyn Sink| engine::run(&graph, catalog, &cache, &plan, &options, sink);
    if !graph.variants.is_empty() {
        return matrix::run(&project, &plan, &id, &cache, &*screen, go, output);
    }
    let kept = project.keep(&plan, &id, None, output);
    let outcome = go(&Listeners(&[&*screen, &kept]));
    let nodes: Vec<&NodeOutcome> = outcome.nodes.iter().collect();
    kept.close_record(&nodes, &folders.runs, &cache, output);
    if let Some(shared) = &outcome.shared {
        shared::tell(shared, output);
    }
    let printed = match outcome.state {
        RunState::Finished => results::print(&graph.shown, &outcome, &cache, output),
        _ => Ok(()),
    };
    kept.close_tracking(outcome.state, &nodes, &folders.runs, &cache, output);
    printed?;
    Ok(conclude(&outcome, &folders.runs.join(&id), &id, output))
}

fn warn(message: &str) {
    Output::of_process().warning(message);
}

/// What layers of configuration made of each other.
pub fn remark(spec: &PipelineSpec, output: &Output) {
    for remark in &spec.remarks {
        output.tell(remark);
    }
}

/// All that a run's record and its tracking are made from.
pub struct Project<'a> {
    pub spec: &'a PipelineSpec,
    pub graph: &'a Graph,
    pub folders: &'a Folders,
    /// What the record says of each node.
    pub texts: HashMap<&'a str, Arc<str>>,
    /// Of tracking.
    pub settings: Option<&'a Settings>,
}

/// What is kept of a run: its record and its tracking journal, where they can be.
pub struct Kept {
    pub id: String,
    record: Option<Recorder>,
    tracker: Option<Tracker>,
}

impl Project<'_> {
    /// Begins the record and the tracking of a run, or of a variant with its part of the plan.
    pub fn keep(
        &self,
        plan: &Plan,
        id: &str,
        variant: Option<(&GraphVariant, &VariantOf)>,
        output: &Output,
    ) -> Kept {
        let record = self.start_record(plan, id, variant, output);
        let (graph, runs) = (self.graph, &self.folders.runs);
        let tracker = self.settings.and_then(|settings| match variant {
            Some((_, variant)) => {
                let settings = tracking::of_variant(settings, variant);
                tracking::start(&settings, graph, plan, Some(variant), runs, id, output)
            }
            None => tracking::start(settings, graph, plan, None, runs, id, output),
        });
        Kept {
            id: id.to_owned(),
            record,
            tracker,
        }
    }

    /// A record that cannot be kept is said so, and the run goes on without.
    fn start_record(
        &self,
        plan: &Plan,
        id: &str,
        variant: Option<(&GraphVariant, &VariantOf)>,
        output: &Output,
    ) -> Option<Recorder> {
        let (spec, graph) = (self.spec, self.graph);
        let run = NewRun {
            id,
            pipeline: &graph.name,
            profile: graph.profile.as_deref(),
            path: &spec.path,
            text: &spec.text,
            arguments: std::env::args().skip(1).collect(),
            cache: &self.folders.cache,
            exports: variant.map_or(&graph.exports, |(variant, _)| &variant.exports),
            models: models(spec, plan.nodes_of(graph)),
            seed: variant.map_or(graph.seed, |(variant, _)| variant.seed),
            variant: variant.map(|(_, variant)| variant.clone()),
            graph: GraphText(
                plan.nodes
                    .iter()
                    .filter_map(|node| self.texts.get(node.name.as_str()).cloned())
                    .collect(),
            ),
        };
        Recorder::start(&self.folders.runs, run)
            .map_err(|error| output.warning(&format!("this run is not recorded: {error}")))
            .ok()
    }
}

impl Sink for Kept {
    fn event(&self, event: &Event) {
        if let Some(record) = &self.record {
            record.event(event);
        }
        if let Some(tracker) = &self.tracker {
            tracker.event(event);
        }
    }
}

impl Kept {
    /// Writes the record to its end, with a page beside it.
    pub fn close_record(
        &self,
        nodes: &[&NodeOutcome],
        runs: &Path,
        cache: &Cache,
        output: &Output,
    ) {
        if let Some(problem) = self.record.as_ref().and_then(Recorder::finish) {
            output.warning(&problem);
        }
        if self.record.is_some() {
            draw_report(nodes, runs, &self.id, cache, output);
        }
    }

    /// Sends what is left.
    pub fn close_tracking(
        &self,
        state: RunState,
        nodes: &[&NodeOutcome],
        runs: &Path,
        cache: &Cache,
        output: &Output,
    ) {
        if let Some(tracker) = &self.tracker {
            tracking::finish(tracker, state, nodes, cache, &runs.join(&self.id), output);
        }
    }
}

/// Several who listen.
pub struct Listeners<'a>(pub &'a [&'a dyn Sink]);

impl Sink for Listeners<'_> {
    fn event(&self, event: &Event) {
        self.0.iter().for_each(|listener| listener.event(event));
    }
}

/// Leaves a page beside the record. A run that found everything cached has nothing new to show and must stay quick;
/// `flow report` draws its page when somebody asks. A page that cannot be drawn is said so, and changes nothing else.
fn draw_report(nodes: &[&NodeOutcome], runs: &Path, id: &str, cache: &Cache, output: &Output) {
    if nodes.iter().all(|node| node.status == NodeStatus::Cached) {
        return;
    }
    let drawn = Run::read(&runs.join(id))
        .map_err(InsightError::from)
        .and_then(|run| report::write(runs, &run, Ok(cache)));
    if let Err(error) = drawn {
        output.warning(&format!("the report is not written: {error}"));
    }
}

/// The models of nodes by `node.param`, with paths that hold wherever the record is read.
fn models<'a>(
    spec: &PipelineSpec,
    nodes: impl Iterator<Item = &'a Node>,
) -> BTreeMap<String, ModelSpec> {
    let models = nodes.flat_map(|node| {
        node.models.iter().map(|(param, model)| {
            let mut model = model.clone();
            if let Some(path) = &mut model.path {
                *path = spec.root.join(&*path).display().to_string();
            }
            (format!("{}.{param}", node.base()), model)
        })
    });
    models.collect()
}

/// Waits for whoever runs on the same cache, and says so once.
fn open_cache(
    folders: &Folders,
    id: &str,
    cancel: &CancelToken,
    output: &Output,
) -> Result<Cache, CliError> {
    let mut told = false;
    let lock = RunLock::acquire(&folders.cache, &Holder::new(id), |holder| {
        if !std::mem::replace(&mut told, true) {
            let holder = holder.map_or_else(|| "another process".to_owned(), Holder::to_string);
            output.tell(&format!(
                "waiting: the cache `{}` is used by {holder}",
                folders.cache.display()
            ));
        }
        !cancel.is_cancelled()
    })?;
    let cache = Cache::open(&folders.cache, lock)?;
    if let Some(recovered) = cache.recovered() {
        output.warning(&recovered.to_string());
    }
    Ok(cache)
}

fn cores() -> u32 {
    std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32)
}

/// The last lines: what went wrong first, and what was done.
fn conclude(outcome: &RunOutcome, record: &Path, id: &str, output: &Output) -> Exit {
    tell_failure(outcome, |_| Some(record.to_owned()), output);
    output.tell(&summary(outcome, &format!("run {id}")));
    exit(outcome.state)
}

pub fn exit(state: RunState) -> Exit {
    match state {
        RunState::Finished => Exit::Ok,
        RunState::Interrupted => Exit::Interrupted,
        RunState::Failed | RunState::Running => Exit::Failed,
    }
}

/// What went wrong first, and where its log is; `record` finds the record of a run that has the node.
pub fn tell_failure(
    outcome: &RunOutcome,
    record: impl Fn(&str) -> Option<PathBuf>,
    output: &Output,
) {
    let Some(failure) = &outcome.headline else {
        return;
    };
    let node = failure
        .node
        .as_ref()
        .map(|node| format!("`{node}` failed: "))
        .unwrap_or_default();
    output.failure(
        &format!("{node}{}", failure.message),
        failure.help.as_deref(),
    );
    let log = failure
        .node
        .as_ref()
        .and_then(|node| Some(log_path(&record(node)?, base_name(node))));
    if let Some(log) = log.filter(|log| log.is_file()) {
        output.tell(&format!(
            "  {} {}",
            output.messages.cyan("log:"),
            display(&log)
        ));
    }
}

/// `finished in 12.3 s: 3 ran, 9 cached (run 20261123-231501-ab12)`.
pub fn summary(outcome: &RunOutcome, what: &str) -> String {
    let count = |status| {
        outcome
            .nodes
            .iter()
            .filter(|node| node.status == status)
            .count()
    };
    let counts = [
        (NodeStatus::Failed, "failed"),
        (NodeStatus::Skipped, "skipped"),
        (NodeStatus::Ran, "ran"),
        (NodeStatus::Cached, "cached"),
    ];
    let counts = counts
        .map(|(status, word)| (count(status), word))
        .into_iter()
        .filter(|(count, _)| *count > 0);
    let counts = counts
        .map(|(count, word)| format!("{count} {word}"))
        .collect::<Vec<_>>()
        .join(", ");
    let counts = if counts.is_empty() {
        "nothing to do".to_owned()
    } else {
        counts
    };
    let state = match outcome.state {
        RunState::Finished => "finished",
        RunState::Interrupted => "interrupted",
        RunState::Failed | RunState::Running => "failed",
    };
    let again = if outcome.state == RunState::Interrupted {
        "; the same command goes on from here"
    } else {
        ""
    };
    format!(
        "{state} in {}: {counts} ({what}){again}",
        seconds(outcome.seconds)
    )
}
