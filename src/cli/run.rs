//! `flow run`: does what a pipeline says.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::Path;

use clap::Args;

use super::arguments::{PipelineArguments, SelectionArguments};
use super::error::{CliError, Exit};
use super::folders::Folders;
use super::output::Output;
use super::resolve::Outside;
use super::{gpus, handover, interrupt, plan, results, tracking};
use crate::cache::{Cache, Holder, RunLock};
use crate::config::{ModelSpec, PipelineSpec, display};
use crate::engine::{
    self, CancelToken, Event, NodeStatus, Plan, RunOptions, RunOutcome, RunState, Sink,
};
use crate::graph::{Graph, compile};
use crate::insight::{InsightError, report};
use crate::ops::Catalog;
use crate::runs::{self, NewRun, Recorder, Run, RunGraph, log_path};
use crate::tracking::Tracker;
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
    let settings = tracking::settings(spec.tracking.as_ref(), &graph.name, arguments.offline)?;
    let folders = Folders::of_pipeline(&spec);
    let cancel = CancelToken::default();
    interrupt::cancel_on_signal(&cancel, *output)?;
    let id = runs::new_id();
    let cache = open_cache(&folders, &id, &cancel, output)?;
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
    if handover::needed(&plan, &graph, catalog) {
        // The lock goes with the cache; the other program takes it again.
        drop(cache);
        return Err(handover::to_language_model());
    }
    let record = start_record(&spec, &graph, &plan, &folders, &id, output);
    let tracker = settings
        .and_then(|settings| tracking::start(&settings, &graph, &plan, &folders.runs, &id, output));
    let sinks = Listeners {
        screen: &*screen,
        record: record.as_ref(),
        tracker: tracker.as_ref(),
    };
    let options = RunOptions {
        id: id.clone(),
        jobs: arguments.jobs.map_or_else(cores, NonZeroU32::get),
        gpus: gpus::visible(),
        offline: arguments.offline,
        home: folders.home.clone(),
        cancel,
    };
    let outcome = engine::run(&graph, catalog, &cache, &plan, &options, &sinks);
    if let Some(problem) = record.as_ref().and_then(Recorder::finish) {
        output.warning(&problem);
    }
    if record.is_some() {
        draw_report(&outcome, &folders.runs, &id, &cache, output);
    }
    let printed = match outcome.state {
        RunState::Finished => results::print(&graph, &outcome, &cache, output),
        _ => Ok(()),
    };
    if let Some(tracker) = &tracker {
        tracking::finish(tracker, &outcome, &cache, &folders.runs.join(&id), output);
    }
    printed?;
    Ok(conclude(&outcome, &folders.runs.join(&id), &id, output))
}

/// The screen and, where they can be kept, the record and the tracking journal.
struct Listeners<'a> {
    screen: &'a dyn Sink,
    record: Option<&'a Recorder>,
    tracker: Option<&'a Tracker>,
}

impl Sink for Listeners<'_> {
    fn event(&self, event: &Event) {
        self.screen.event(event);
        if let Some(record) = self.record {
            record.event(event);
        }
        if let Some(tracker) = self.tracker {
            tracker.event(event);
        }
    }
}

/// A record that cannot be kept is said so, and the run goes on without.
fn start_record(
    spec: &PipelineSpec,
    graph: &Graph,
    plan: &Plan,
    folders: &Folders,
    id: &str,
    output: &Output,
) -> Option<Recorder> {
    let run = NewRun {
        id,
        pipeline: &graph.name,
        profile: graph.profile.as_deref(),
        path: &spec.path,
        text: &spec.text,
        arguments: std::env::args().skip(1).collect(),
        cache: &folders.cache,
        exports: &graph.exports,
        models: models(spec, graph),
        seed: graph.seed,
        graph: RunGraph::new(plan.manifests(graph)),
    };
    Recorder::start(&folders.runs, run)
        .map_err(|error| output.warning(&format!("this run is not recorded: {error}")))
        .ok()
}

/// Leaves a page beside the record. A run that found everything cached has nothing new to show and must stay quick;
/// `flow report` draws its page when somebody asks. A page that cannot be drawn is said so, and changes nothing else.
fn draw_report(outcome: &RunOutcome, runs: &Path, id: &str, cache: &Cache, output: &Output) {
    if outcome
        .nodes
        .iter()
        .all(|node| node.status == NodeStatus::Cached)
    {
        return;
    }
    let drawn = Run::read(&runs.join(id))
        .map_err(InsightError::from)
        .and_then(|run| report::write(runs, &run, Ok(cache)));
    if let Err(error) = drawn {
        output.warning(&format!("the report is not written: {error}"));
    }
}

/// The models of all nodes by `node.param`, with paths that hold wherever the record is read.
fn models(spec: &PipelineSpec, graph: &Graph) -> BTreeMap<String, ModelSpec> {
    let nodes = graph.dag.node_weights();
    let models = nodes.flat_map(|node| {
        node.models.iter().map(|(param, model)| {
            let mut model = model.clone();
            if let Some(path) = &mut model.path {
                *path = spec.root.join(&*path).display().to_string();
            }
            (format!("{}.{param}", node.name), model)
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
    if let Some(failure) = &outcome.headline {
        let node = failure
            .node
            .as_ref()
            .map(|node| format!("`{node}` failed: "))
            .unwrap_or_default();
        output.failure(
            &format!("{node}{}", failure.message),
            failure.help.as_deref(),
        );
        let log = failure.node.as_ref().map(|node| log_path(record, node));
        if let Some(log) = log.filter(|log| log.is_file()) {
            output.tell(&format!(
                "  {} {}",
                output.messages.cyan("log:"),
                display(&log)
            ));
        }
    }
    output.tell(&summary(outcome, id));
    match outcome.state {
        RunState::Finished => Exit::Ok,
        RunState::Interrupted => Exit::Interrupted,
        RunState::Failed | RunState::Running => Exit::Failed,
    }
}

/// `finished in 12.3 s: 3 ran, 9 cached (run 20261123-231501-ab12)`.
fn summary(outcome: &RunOutcome, id: &str) -> String {
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
        "{state} in {}: {counts} (run {id}){again}",
        seconds(outcome.seconds)
    )
}
