//! Runs one node: prepares its context, calls the op, checks that what it read stayed as it was, commits.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use super::plan::Facts;
use super::sharing::{Sharing, tell_warnings};
use super::{Call, Event, EventKind, Level, RunOptions, Sink};
use crate::cache::{Artifact, Cache, Entry, ExternalError, NewEntry, RemoteError};
use crate::graph::{Manifest, Node};
use crate::ops::{Context, Op, OpError, Outputs, RunFn};

/// From this size on a transfer is told when it starts.
const WORTH_TELLING: u64 = 16 << 20;

/// All that is needed to run a node on any thread.
pub(super) struct Task<'run> {
    pub(super) pipeline: &'run str,
    pub(super) root: &'run std::path::Path,
    pub(super) node: &'run Node,
    pub(super) op: Option<&'run dyn Op>,
    pub(super) run: Option<RunFn>,
    /// Whether the executor runs it.
    pub(super) elsewhere: bool,
    pub(super) manifest: Manifest,
    pub(super) inputs: BTreeMap<String, Artifact>,
    pub(super) facts: &'run Facts,
    pub(super) gpus: Vec<u32>,
}

/// Why a task did not end with a result.
pub(super) enum Stopped {
    Failed(OpError),
    /// What these input ports read cannot be had from the shared cache, though it is known there.
    Lost(Vec<String>),
}

impl<E: Into<OpError>> From<E> for Stopped {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// Runs a task to its commit; what it reads and is only in the shared cache comes here first.
pub(super) fn execute(
    task: Task<'_>,
    cache: &Cache,
    options: &RunOptions,
    sink: &dyn Sink,
    sharing: &Sharing<'_>,
) -> Result<Arc<Entry>, Stopped> {
    let node = task.node;
    let lost = fetch(&task, cache, sink, sharing)?;
    if !lost.is_empty() {
        return Err(Stopped::Lost(lost));
    }
    let start = Instant::now();
    let fingerprint = task.manifest.fingerprint();
    let scratch = cache.scratch_path(fingerprint);
    fs_err::create_dir_all(&scratch)?;
    let mut context = Context {
        node,
        fingerprint,
        inputs: task.inputs,
        models: task
            .facts
            .models
            .iter()
            .map(|(param, place)| {
                (
                    param.clone(),
                    (place.clone(), task.facts.model_digests[param]),
                )
            })
            .collect(),
        paths: task.facts.paths.clone(),
        scratch,
        root: task.root.to_path_buf(),
        home: options.home.clone(),
        offline: options.offline,
        gpus: task.gpus,
        cancel: options.cancel.clone(),
        cache,
        sink,
        outputs: Outputs::default(),
        part: None,
        parts: None,
    };
    let executor = options.executor.as_deref();
    let outputs = match (executor, task.op, task.run) {
        (Some(executor), Some(op), run) if task.elsewhere => {
            let manifest = &task.manifest;
            caught("the executor", || {
                executor.run(&Call { op, manifest, run }, &mut context)
            })
        }
        (executor, op, run) => {
            let done = match (executor, op) {
                (Some(executor), Some(op)) => executor.prepare(op, &mut context)?,
                _ => None,
            };
            done.map_or_else(|| run_here(&mut context, run), Ok)
        }
    }?;
    check_outputs(node, &outputs)?;
    check_data(node, task.facts, cache)?;
    let seconds = start.elapsed().as_secs_f64();
    let Outputs { artifacts, metrics } = outputs;
    let new = NewEntry {
        pipeline: task.pipeline,
        node: &node.name,
        op: &node.op,
        manifest: &task.manifest,
        outputs: artifacts,
        metrics,
        seconds,
    };
    Ok(cache.commit(new)?)
}

/// Runs an op in this process; a panic is an error like any other.
pub(crate) fn run_here(context: &mut Context<'_>, run: Option<RunFn>) -> Result<Outputs, OpError> {
    let run = run.ok_or_else(|| {
        OpError::with_help(
            format!(
                "`{}` needs the language-model runtime, which this program does not have",
                context.node.op
            ),
            "run it with `flow-lm`",
        )
    })?;
    caught("the op", || run(context))
}

/// A panic of `who` is an error like any other: it fails the node, and the run goes on.
pub(super) fn caught<T, E: From<OpError>>(
    who: &str,
    work: impl FnOnce() -> Result<T, E>,
) -> Result<T, E> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(panicked(who, &*panic).into()))
}

/// Brings the inputs here; gives the ports of those that cannot be had.
fn fetch(
    task: &Task<'_>,
    cache: &Cache,
    sink: &dyn Sink,
    sharing: &Sharing<'_>,
) -> Result<Vec<String>, OpError> {
    let mut lost = Vec::new();
    for (port, artifact) in &task.inputs {
        if cache.has(artifact) {
            continue;
        }
        if artifact.bytes >= WORTH_TELLING {
            sink.event(&Event::now(EventKind::Fetching {
                what: format!(
                    "what `{}` reads as `{port}`, from the shared cache",
                    task.node.name
                ),
            }));
        }
        match cache.fetch(artifact) {
            Ok(()) => sharing.note_fetched(),
            // The disk, or memory: it would be no better if the node ran that made it.
            Err(RemoteError::Cache(error)) => return Err(error.into()),
            Err(error) => {
                if let RemoteError::Missing { .. } = error {
                    tell_warnings(cache, sink);
                    let message = format!("{error}, where an entry says it is");
                    sink.event(&Event::now(EventKind::Log {
                        node: None,
                        level: Level::Warn,
                        message,
                    }));
                }
                lost.push(port.clone());
            }
        }
    }
    tell_warnings(cache, sink);
    Ok(lost)
}

fn panicked(who: &str, panic: &(dyn std::any::Any + Send)) -> OpError {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    OpError::with_help(
        format!("{who} panicked: {}", text.unwrap_or("no message")),
        "this is a mistake in flow itself; please report it",
    )
}

fn check_outputs(node: &Node, outputs: &Outputs) -> Result<(), OpError> {
    for promised in &node.outputs {
        match outputs.artifacts.get(&promised.name) {
            None => {
                return Err(OpError::new(format!(
                    "the op `{}` did not give its output `{}`",
                    node.op, promised.name
                )));
            }
            Some(artifact) if artifact.kind != promised.kind => {
                return Err(OpError::new(format!(
                    "the op `{}` gave another kind of artifact as `{}` than it promised",
                    node.op, promised.name
                )));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// Data from outside must be what was hashed before: otherwise the result belongs to no fingerprint.
fn check_data(node: &Node, facts: &Facts, cache: &Cache) -> Result<(), OpError> {
    for (param, before) in &facts.path_digests {
        let path = &facts.paths[param];
        let moved = match cache.digest_path(path) {
            Ok(now) => now != *before,
            Err(ExternalError::Missing(_) | ExternalError::Unsteady(_)) => true,
            Err(error) => return Err(OpError::new(error.to_string())),
        };
        if moved {
            return Err(OpError::with_help(
                format!(
                    "`{}` changed while `{}` was reading it; nothing was recorded",
                    path.display(),
                    node.name
                ),
                "run again once it is no longer written to",
            ));
        }
    }
    Ok(())
}
