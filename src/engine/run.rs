//! A run from its beginning to its end: what is left over is ended, the scheduler does the plan, results are kept.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use super::outcome::{Failure, RunOutcome};
use super::plan::Plan;
use super::scheduler::Scheduler;
use super::sharing::{Sharing, tell_warnings};
use super::{CancelToken, Event, EventKind, Executor, NodeStatus, RunState, Sink};
use crate::cache::Cache;
use crate::graph::Graph;
use crate::ops::Catalog;

/// How a run goes about it; none of this can change a result.
#[derive(Debug, Clone)]
pub struct RunOptions {
    pub id: String,
    /// CPU slots.
    pub jobs: u32,
    /// Names of the GPUs that may be used.
    pub gpus: Vec<u32>,
    pub offline: bool,
    /// `FLOW_HOME`.
    pub home: PathBuf,
    pub cancel: CancelToken,
    /// `None` runs everything in this process.
    pub executor: Option<Arc<dyn Executor>>,
}

/// Does what a plan says: runs what is not cached, in order of need and as wide as the slots allow.
///
/// A node that fails takes those below it out; all others finish. Once cancelled, no further node starts.
pub fn run(
    graph: &Graph,
    catalog: &Catalog,
    cache: &Cache,
    plan: &Plan,
    options: &RunOptions,
    sink: &dyn Sink,
) -> RunOutcome {
    let start = Instant::now();
    let emit = |kind| sink.event(&Event::now(kind));
    emit(EventKind::RunStarted {
        id: options.id.clone(),
        pipeline: graph.name.clone(),
        nodes: plan.nodes.len(),
    });
    if let Err(error) = super::children::end_leftovers(&cache.partials_path(), &|fingerprint| {
        cache.job_path(fingerprint).exists()
    }) {
        let message = format!("processes of an earlier run may still be running: {error}");
        emit(EventKind::Log {
            node: None,
            level: super::Level::Warn,
            message,
        });
    }
    let sharing = Sharing::new(cache);
    let (outcomes, mut headline, shared) = std::thread::scope(|scope| {
        sharing.start(scope, &options.cancel);
        let mut scheduler = Scheduler::new(graph, catalog, cache, plan, options, sink, &sharing);
        scheduler.run();
        let Scheduler {
            outcomes, headline, ..
        } = scheduler;
        (outcomes, headline, sharing.finish(sink))
    });
    let fingerprints: Option<Vec<_>> = outcomes
        .iter()
        .map(|outcome| outcome.fingerprint.filter(|_| outcome.error.is_none()))
        .collect();
    if let Some(fingerprints) = fingerprints
        && cache.remote().is_some_and(|remote| remote.takes())
        && cache
            .send_pipeline(plan.request(graph), &fingerprints)
            .is_err()
    {
        tell_warnings(cache, sink);
    }
    let names = outcomes.iter().filter_map(|outcome| {
        Some((
            outcome.name.as_str(),
            outcome.fingerprint.filter(|_| outcome.error.is_none())?,
        ))
    });
    if let Err(error) = cache
        .set_latest(&graph.name, names)
        .and_then(|()| cache.flush())
    {
        headline.get_or_insert(Failure {
            node: None,
            message: format!("results could not be kept: {error}"),
            help: error.help(),
        });
    }
    let cancelled = options.cancel.is_cancelled()
        && outcomes
            .iter()
            .any(|outcome| outcome.status == NodeStatus::Skipped);
    let state = match headline {
        Some(_) => RunState::Failed,
        None if cancelled => RunState::Interrupted,
        None => RunState::Finished,
    };
    let seconds = start.elapsed().as_secs_f64();
    emit(EventKind::RunFinished { state, seconds });
    RunOutcome {
        state,
        seconds,
        nodes: outcomes,
        headline,
        shared,
    }
}
