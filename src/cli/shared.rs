//! The shared cache at the command line: where it is, what a run says of it, `flow cache push` and `pull`.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use super::error::{CliError, Exit};
use super::folders::Folders;
use super::output::Output;
use crate::cache::{Artifact, Cache, Counts, Remote, RemoteError, Sent};
use crate::config::check_remote;
use crate::engine::{Event, EventKind, Progress, RunState, SharedOutcome};
use crate::ui::{bytes, plural, seconds};

/// Results on their way at once; each moves several parts of a file.
const AT_ONCE: usize = 4;

/// Gives a cache the shared one that the environment or the pipeline names.
pub fn connect(cache: &mut Cache, folders: &Folders, offline: bool) -> Result<(), CliError> {
    if let Some(address) = &folders.remote {
        check(address)?;
        cache.set_remote(Remote::new(address, offline, &folders.cache));
    }
    Ok(())
}

/// The shared cache to use without a pipeline: the environment's, else the one the cache was used with last.
pub fn remote(folders: &Folders) -> Result<Remote, CliError> {
    let address = folders
        .remote
        .clone()
        .or_else(|| Remote::last_address(&folders.cache));
    let address = address.ok_or_else(|| {
        CliError::wrong(
            format!("the cache `{}` is not shared", folders.cache.display()),
            "run a pipeline with `cache: { remote: s3://bucket/prefix }` first, or set `FLOW_CACHE_REMOTE`",
        )
    })?;
    check(&address)?;
    Ok(Remote::new(&address, false, &folders.cache))
}

/// What a command is about that was started for the shared cache alone.
pub fn failed(error: RemoteError) -> CliError {
    match error {
        RemoteError::Cache(error) => error.into(),
        error => CliError::failed(
            error.to_string(),
            Some("check the address, the network and the keys in the environment".to_owned()),
        ),
    }
}

/// Sends what is here and not there.
pub fn push(
    mut cache: Cache,
    folders: &Folders,
    json: bool,
    output: &Output,
) -> Result<Exit, CliError> {
    cache.set_remote(remote(folders)?);
    let unsent = cache.unsent().map_err(failed)?;
    let start = Instant::now();
    let (sent, failures) = at_once(&unsent, "sent", &cache, output, |fingerprint| {
        Ok(cache.send(*fingerprint)? == Sent::Sent)
    });
    cache.flush()?;
    conclude(
        &Moved {
            verb: "sent",
            of: "result",
            moved: sent,
            bytes: counts(&cache).sent,
            seconds: start.elapsed().as_secs_f64(),
            failures,
        },
        json,
        output,
    )
}

/// Fetches what is there and not here.
pub fn pull(
    mut cache: Cache,
    folders: &Folders,
    json: bool,
    output: &Output,
) -> Result<Exit, CliError> {
    cache.set_remote(remote(folders)?);
    let missing = cache.elsewhere();
    let start = Instant::now();
    let (fetched, failures) = at_once(&missing, "fetched", &cache, output, |artifact| {
        let fetched = cache.fetch(artifact);
        if let Err(RemoteError::Missing { .. } | RemoteError::Damaged { .. }) = fetched {
            cache.set_content_lost(artifact);
        }
        fetched.map(|()| true)
    });
    cache.flush()?;
    conclude(
        &Moved {
            verb: "fetched",
            of: "artifact",
            moved: fetched,
            bytes: counts(&cache).received,
            seconds: start.elapsed().as_secs_f64(),
            failures,
        },
        json,
        output,
    )
}

struct Moved {
    verb: &'static str,
    of: &'static str,
    moved: usize,
    bytes: u64,
    seconds: f64,
    failures: Vec<String>,
}

fn conclude(moved: &Moved, json: bool, output: &Output) -> Result<Exit, CliError> {
    for failure in &moved.failures {
        let help =
            (moved.verb == "fetched").then_some("the next run makes it again where it is needed");
        output.failure(failure, help);
    }
    if json {
        output.print_json(&serde_json::json!({
            moved.verb: moved.moved, "bytes": moved.bytes, "seconds": moved.seconds, "failed": moved.failures.len(),
        }))?;
    } else {
        output.print(&format!(
            "{} {}, {}",
            plural(moved.moved as u64, moved.of),
            moved.verb,
            rate(moved.bytes, moved.seconds)
        ))?;
    }
    Ok(if moved.failures.is_empty() {
        Exit::Ok
    } else {
        Exit::Failed
    })
}

fn counts(cache: &Cache) -> Counts {
    cache.remote().map(Remote::counts).unwrap_or_default()
}

/// Works on several things at once and tells how far it is; gives how many were moved, and what failed.
fn at_once<T: Sync>(
    things: &[T],
    verb: &str,
    cache: &Cache,
    output: &Output,
    work: impl Fn(&T) -> Result<bool, RemoteError> + Sync,
) -> (usize, Vec<String>) {
    let (next, moved) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let failures = Mutex::new(BTreeSet::new());
    let sink = output.sink();
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE.min(things.len()) {
            scope.spawn(|| {
                while let Some(thing) = things.get(next.fetch_add(1, Ordering::Relaxed)) {
                    match work(thing) {
                        Ok(new) => moved.fetch_add(usize::from(new), Ordering::Relaxed),
                        Err(error) => {
                            let mut failures =
                                failures.lock().unwrap_or_else(PoisonError::into_inner);
                            // The same of many is one.
                            failures.insert(error.to_string());
                            0
                        }
                    };
                    let counts = counts(cache);
                    sink.event(&Event::now(EventKind::Progress {
                        node: "shared cache".to_owned(),
                        progress: Progress {
                            done: next.load(Ordering::Relaxed).min(things.len()) as u64,
                            total: things.len() as u64,
                            unit: "results".to_owned(),
                            note: format!("{} {verb}", bytes(counts.sent + counts.received)),
                        },
                    }));
                }
            });
        }
    });
    sink.event(&Event::now(EventKind::RunFinished {
        state: RunState::Finished,
        seconds: 0.0,
    }));
    let failures = failures
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    (moved.into_inner(), failures.into_iter().collect())
}

/// `30.0 MiB in 1.2 s (25.0 MiB/s)`.
fn rate(size: u64, took: f64) -> String {
    let second = (size as f64 / took.max(1e-3)) as u64;
    format!("{} in {} ({}/s)", bytes(size), seconds(took), bytes(second))
}

fn check(address: &str) -> Result<(), CliError> {
    check_remote(address).map_err(|wrong| CliError::wrong(wrong.message, wrong.help))
}

/// Says what a cache noticed of its shared one.
pub fn warn(cache: &Cache, output: &Output) {
    for message in cache.remote().map(Remote::warnings).unwrap_or_default() {
        output.warning(&message);
    }
}

/// Brings an artifact here for somebody who wants to see it; says whether it is here.
pub fn bring(cache: &Cache, artifact: &Artifact, output: &Output) -> Result<bool, CliError> {
    if cache.has(artifact) {
        return Ok(true);
    }
    let fetched = cache.fetch(artifact);
    warn(cache, output);
    match fetched {
        Ok(()) => Ok(true),
        Err(RemoteError::Cache(error)) => Err(error.into()),
        Err(_) => Ok(false),
    }
}

/// Brings what somebody wants to see to the cache in `folder`, which is written for that; what is there already costs
/// nothing, and what cannot be had is told.
pub fn ensure<'a>(
    folder: &std::path::Path,
    artifacts: impl IntoIterator<Item = &'a Artifact>,
    output: &Output,
) -> Result<(), CliError> {
    let cache = Cache::open_read_only(folder)?;
    let missing: Vec<&Artifact> = artifacts
        .into_iter()
        .filter(|artifact| !cache.has(artifact))
        .collect();
    drop(cache);
    let folders = Folders {
        cache: folder.to_owned(),
        ..Folders::of_working_folder()
    };
    let known = folders.remote.is_some() || Remote::last_address(folder).is_some();
    if missing.is_empty() || !known {
        return Ok(());
    }
    let mut cache = super::cache::open(&folders, "data", output)?;
    cache.set_remote(remote(&folders)?);
    for artifact in missing {
        bring(&cache, artifact, output)?;
    }
    Ok(cache.flush()?)
}

/// `shared cache: 9 results are there, 2 of them fetched (1.2 MiB); 3 sent, 30.0 MiB in 1.2 s (25.0 MiB/s)`; nothing
/// where nothing passed.
pub fn tell(shared: &SharedOutcome, output: &Output) {
    let mut parts = Vec::new();
    if shared.elsewhere > 0 {
        let verb = if shared.elsewhere == 1 { "is" } else { "are" };
        let results = plural(shared.elsewhere as u64, "result");
        parts.push(format!("{results} {verb} only there"));
    }
    if shared.fetched > 0 {
        let artifacts = plural(shared.fetched as u64, "artifact");
        let size = bytes(shared.received_bytes);
        parts.push(format!("{artifacts} fetched ({size})"));
    }
    if shared.sent > 0 {
        parts.push(format!(
            "{} sent, {}",
            plural(shared.sent as u64, "result"),
            rate(shared.sent_bytes, shared.seconds)
        ));
    }
    if !parts.is_empty() {
        output.tell(&format!("shared cache: {}", parts.join("; ")));
    }
    if shared.unsent > 0 {
        let results = plural(shared.unsent as u64, "result");
        output.warning(&format!(
            "{results} could not be sent to the shared cache; the next run or `flow cache push` sends what is missing there"
        ));
    }
}
