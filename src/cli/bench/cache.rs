//! `flow bench cache`: what the cache's own books cost by the number of results they hold.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::process;
use crate::cache::{Artifact, Cache, Holder, NewEntry, RunLock, Verdict};
use crate::cli::error::{CliError, Exit};
use crate::cli::output::Output;
use crate::config::ArtifactKind;
use crate::digest::Digest;
use crate::graph::Manifest;
use crate::ui::{bytes, count, seconds, table};

/// Measure what the cache's own books cost: commits, the index, its start, by the number of results
#[derive(Debug, Args)]
pub struct Arguments {
    /// Numbers of results
    #[arg(
        long,
        value_name = "N,N",
        value_delimiter = ',',
        default_value = "1000,10000,100000"
    )]
    results: Vec<u64>,

    /// Print the measurements as JSON
    #[arg(long)]
    json: bool,

    /// Only open the cache in this folder and read its manifests, and print what that took: the work of a child process
    #[arg(long, hide = true)]
    open: Option<PathBuf>,
}

/// What a process of its own finds when it opens a cache. Times in seconds, memory in bytes.
#[derive(Debug, Serialize, Deserialize)]
struct Opened {
    open: f64,
    open_memory: Option<u64>,
    manifests: f64,
    manifests_memory: Option<u64>,
}

/// Of so many results that name one output each. Times in seconds, sizes in bytes.
#[derive(Debug, Serialize)]
struct Measured {
    results: u64,
    /// Handing all over and waiting until they are durable.
    commit: f64,
    database: u64,
    ledger: u64,
    snapshot: u64,
    /// Opening with the index of the snapshot, as every run begins; then reading all manifests, as the first reason of a node
    /// that runs asks for.
    #[serde(flatten)]
    opened: Opened,
    /// Opening without the snapshot, as after a run that was killed.
    open_database: f64,
    /// One more result, as the shortest run that does something ends.
    one_more: f64,
    /// Verdicts of a judge kept per second: of the first tenth of as many verdicts as results, and of the last.
    first_verdicts: f64,
    last_verdicts: f64,
}

/// Verdicts that are kept together, about as many as a judge gives at once.
const BATCH: u64 = 256;

pub fn run(arguments: &Arguments, output: &Output) -> Result<Exit, CliError> {
    if let Some(folder) = &arguments.open {
        output.print_json(&json!(opened(folder)?))?;
        return Ok(Exit::Ok);
    }
    let mut all = Vec::new();
    for &results in &arguments.results {
        all.push(measure(results)?);
    }
    if arguments.json {
        output.print_json(&json!(all))?;
        return Ok(Exit::Ok);
    }
    let rows: Vec<Vec<String>> = all.iter().map(row).collect();
    let header = [
        "results",
        "commit",
        "database",
        "ledger",
        "index",
        "open",
        "memory",
        "manifests",
        "memory",
        "from database",
        "one more",
        "verdicts/s",
        "at last",
    ];
    output.print(&table(&header, &rows, None))?;
    Ok(Exit::Ok)
}

fn row(measured: &Measured) -> Vec<String> {
    let memory = |taken: Option<u64>| taken.map_or_else(|| "–".to_owned(), bytes);
    vec![
        count(measured.results),
        seconds(measured.commit),
        bytes(measured.database),
        bytes(measured.ledger),
        bytes(measured.snapshot),
        seconds(measured.opened.open),
        memory(measured.opened.open_memory),
        seconds(measured.opened.manifests),
        memory(measured.opened.manifests_memory),
        seconds(measured.open_database),
        seconds(measured.one_more),
        count(measured.first_verdicts as u64),
        count(measured.last_verdicts as u64),
    ]
}

fn measure(results: u64) -> Result<Measured, CliError> {
    let place = tempfile::tempdir()?;
    let folder = place.path();
    let (commit, ()) = timed(|| {
        let cache = open(folder)?;
        (0..results).try_for_each(|number| add(&cache, number))?;
        Ok(cache.flush()?)
    })?;
    let size = |name: &str| std::fs::metadata(folder.join(name)).map(|file| file.len());
    let (database, ledger, snapshot) = (
        size("flow.duckdb")?,
        size("ledger.jsonl")?,
        size("index.json")?,
    );
    let opened = in_child(folder)?;
    std::fs::remove_file(folder.join("index.json"))?;
    let (open_database, cache) = timed(|| open(folder))?;
    let (one_more, ()) = timed(|| {
        add(&cache, results)?;
        Ok(cache.flush()?)
    })?;
    let (first_verdicts, last_verdicts) = verdicts(&cache, results)?;
    Ok(Measured {
        results,
        commit,
        database,
        ledger,
        snapshot,
        opened,
        open_database,
        one_more,
        first_verdicts,
        last_verdicts,
    })
}

/// Keeps so many verdicts, batch by batch; gives how many a second at first and at last.
fn verdicts(cache: &Cache, number: u64) -> Result<(f64, f64), CliError> {
    let verdict = Verdict {
        choice: 1,
        probability: 0.75,
        detail: String::new(),
    };
    let batches = number.div_ceil(BATCH).max(1);
    let tenth = batches.div_ceil(10);
    let (mut first, mut last) = (0.0, 0.0);
    for batch in 0..batches {
        let key = |place| Digest::of(format!("verdict {}", batch * BATCH + place));
        let rows: Vec<_> = (0..BATCH)
            .map(|place| (key(place), verdict.clone()))
            .collect();
        let (taken, ()) = timed(|| Ok(cache.verdicts_put(&rows)?))?;
        if batch < tenth {
            first += taken;
        }
        if batch >= batches - tenth {
            last += taken;
        }
    }
    let rate = |seconds: f64| (tenth * BATCH) as f64 / seconds;
    Ok((rate(first), rate(last)))
}

/// What was freed before would hide what is taken now, so a new process looks.
fn in_child(folder: &Path) -> Result<Opened, CliError> {
    let ended = Command::new(std::env::current_exe()?)
        .args(["bench", "cache", "--open"])
        .arg(folder)
        .stderr(Stdio::inherit())
        .output()?;
    if !ended.status.success() {
        let message = format!("the measured process ended with {}", ended.status);
        return Err(CliError::failed(message, None));
    }
    Ok(serde_json::from_slice(&ended.stdout).map_err(std::io::Error::from)?)
}

fn opened(folder: &Path) -> Result<Opened, CliError> {
    let before = process::resident();
    let (open, cache) = timed(|| open(folder))?;
    let open_memory = grown(before);
    let (manifests, _) = timed(|| Ok(cache.last_manifest("bench", "node 0")?))?;
    Ok(Opened {
        open,
        open_memory,
        manifests,
        manifests_memory: grown(before),
    })
}

fn open(folder: &Path) -> Result<Cache, CliError> {
    let lock = RunLock::acquire(folder, &Holder::new("bench"), |_| false)?;
    Ok(Cache::open(folder, lock)?)
}

/// A result as a node with a few params and one input leaves it; the content of its output is nowhere.
fn add(cache: &Cache, number: u64) -> Result<(), CliError> {
    let digest = Digest::of(number.to_le_bytes());
    let text = |name: &str| (name.to_owned(), format!("\"{name} {number}\""));
    let manifest = Manifest {
        layout: 1,
        op: "command".to_owned(),
        op_version: 1,
        params: ["files", "interpreter", "run"].map(text).into(),
        files: BTreeMap::new(),
        paths: BTreeMap::new(),
        models: BTreeMap::new(),
        inputs: BTreeMap::from([("rows".to_owned(), digest)]),
        seed: number,
    };
    let artifact = Artifact {
        kind: ArtifactKind::Files,
        digest,
        rows: None,
        bytes: number,
    };
    cache.commit(NewEntry {
        pipeline: "bench",
        node: &format!("node {number}"),
        op: "command",
        manifest: &manifest,
        outputs: BTreeMap::from([("files".to_owned(), artifact)]),
        metrics: BTreeMap::new(),
        seconds: 0.01,
    })?;
    Ok(())
}

fn timed<T>(work: impl FnOnce() -> Result<T, CliError>) -> Result<(f64, T), CliError> {
    let start = Instant::now();
    let done = work()?;
    Ok((start.elapsed().as_secs_f64(), done))
}

fn grown(before: Option<u64>) -> Option<u64> {
    Some(process::resident()?.saturating_sub(before?))
}
