//! Writes the record of a run as it happens, on a thread of its own: what the engine waits for is one message.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fs_err as fs;

use super::{Environment, GraphText, Head, VariantOf};
use crate::config::ModelSpec;
use crate::engine::{Event, EventKind, NodeStatus, RunState, Sink};
use crate::failpoint;

/// How long a line may stay in memory.
const FLUSH: Duration = Duration::from_millis(200);

/// What is known of a run when it starts.
#[derive(Debug, Clone)]
pub struct NewRun<'a> {
    pub id: &'a str,
    pub pipeline: &'a str,
    pub profile: Option<&'a str>,
    pub path: &'a Path,
    /// The text of the pipeline file.
    pub text: &'a str,
    pub arguments: Vec<String>,
    pub cache: &'a Path,
    /// [`crate::graph::Graph::exports`].
    pub exports: &'a BTreeMap<String, String>,
    /// [`Head::models`].
    pub models: BTreeMap<String, ModelSpec>,
    pub seed: u64,
    pub variant: Option<VariantOf>,
    pub graph: GraphText,
}

/// A listener that keeps the record. What cannot be written is left out; [`Recorder::finish`] says so.
#[derive(Debug)]
pub struct Recorder {
    events: Mutex<Option<Sender<Event>>>,
    thread: Mutex<Option<JoinHandle<Option<String>>>>,
}

struct Files {
    folder: PathBuf,
    events: BufWriter<File>,
    metrics: Option<BufWriter<File>>,
    /// Of nodes that run now.
    logs: HashMap<String, BufWriter<File>>,
    head: Head,
    /// The first problem.
    problem: Option<String>,
}

impl Recorder {
    /// Makes `runs/<id>/` and listens from now on.
    pub fn start(runs: &Path, run: NewRun) -> std::io::Result<Self> {
        let folder = runs.join(run.id);
        fs::create_dir_all(runs)?;
        fs::create_dir(&folder)?;
        fs::write(folder.join("pipeline.yaml"), run.text)?;
        let events = File::create(folder.join("events.jsonl"))?;
        // Held to the end of the process: whoever can take it knows that this run is over.
        events.lock()?;
        let head = Head {
            id: run.id.to_owned(),
            pipeline: run.pipeline.to_owned(),
            profile: run.profile.map(str::to_owned),
            state: RunState::Running,
            started: jiff::Timestamp::now()
                .strftime("%Y-%m-%dT%H:%M:%S.%3fZ")
                .to_string(),
            seconds: None,
            path: run.path.display().to_string(),
            arguments: run.arguments.clone(),
            cache: run.cache.to_owned(),
            exports: run.exports.clone(),
            models: run.models.clone(),
            seed: run.seed,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            counts: Default::default(),
            metrics: Default::default(),
            error: None,
            variant: run.variant.clone(),
            environment: Environment::look(),
        };
        write_head(&folder, &head)?;
        let mut files = Files {
            folder,
            events: BufWriter::new(events),
            metrics: None,
            logs: HashMap::new(),
            head,
            problem: None,
        };
        let (sender, inbox) = mpsc::channel();
        let graph = run.graph;
        let thread = std::thread::Builder::new()
            .name("recorder".to_owned())
            .spawn(move || {
                let written = files.write_graph(&graph);
                files.note(written);
                files.listen(&inbox);
                files.problem
            })?;
        Ok(Self {
            events: Mutex::new(Some(sender)),
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Writes everything out; says what could not be written.
    pub fn finish(&self) -> Option<String> {
        self.events
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()?;
        thread
            .join()
            .unwrap_or_else(|_| Some("the thread that writes the run record has ended".to_owned()))
    }
}

impl Sink for Recorder {
    fn event(&self, event: &Event) {
        if matches!(event.kind, EventKind::Progress { .. }) {
            return;
        }
        if let Some(events) = &*self.events.lock().unwrap_or_else(PoisonError::into_inner) {
            // Without a listener there is nothing to record; `finish` tells.
            let _ = events.send(event.clone());
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.finish();
    }
}

impl Files {
    fn listen(&mut self, inbox: &Receiver<Event>) {
        let mut flushed = Instant::now();
        loop {
            match inbox.recv_timeout(FLUSH) {
                Ok(event) => {
                    let written = self.write(&event);
                    self.note(written);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if flushed.elapsed() >= FLUSH {
                let written = self.flush();
                self.note(written);
                flushed = Instant::now();
            }
        }
        let flushed = self
            .flush()
            .and_then(|()| write_head(&self.folder, &self.head));
        self.note(flushed);
    }

    fn write_graph(&self, graph: &GraphText) -> std::io::Result<()> {
        crate::atomic::write(&self.folder.join("graph.json"), &graph.to_bytes())
    }

    fn note(&mut self, result: std::io::Result<()>) {
        if let Err(error) = result {
            self.problem
                .get_or_insert_with(|| format!("the run record is not complete: {error}"));
        }
    }

    fn write(&mut self, event: &Event) -> std::io::Result<()> {
        match &event.kind {
            EventKind::Log {
                node: Some(node),
                message,
                ..
            } => return self.log(node, &event.time, message),
            EventKind::Metric { node, step, values } => {
                let path = self.folder.join("metrics.jsonl");
                let metrics = match &mut self.metrics {
                    Some(metrics) => metrics,
                    none => none.insert(BufWriter::new(File::create(path)?)),
                };
                let line = serde_json::json!({ "time": event.time, "node": node, "step": step, "values": values });
                return line_to(metrics, &line);
            }
            EventKind::NodeFinished {
                node,
                status,
                metrics,
                error,
                ..
            } => {
                let name = match status {
                    NodeStatus::Ran => "ran",
                    NodeStatus::Cached => "cached",
                    NodeStatus::Failed => "failed",
                    NodeStatus::Skipped => "skipped",
                };
                *self.head.counts.entry(name.to_owned()).or_default() += 1;
                self.head.metrics.extend(
                    metrics
                        .iter()
                        .map(|(metric, value)| (format!("{node}.{metric}"), *value)),
                );
                if let (NodeStatus::Failed, Some(error)) = (status, error) {
                    self.head
                        .error
                        .get_or_insert_with(|| format!("`{node}`: {error}"));
                }
                if let Some(mut log) = self.logs.remove(node) {
                    log.flush()?;
                }
            }
            EventKind::NodeReopened { .. } => {
                if let Some(cached) = self.head.counts.get_mut("cached") {
                    *cached = cached.saturating_sub(1);
                }
                self.head.counts.retain(|_, count| *count > 0);
            }
            EventKind::RunFinished { state, seconds } => {
                self.head.state = *state;
                self.head.seconds = Some(*seconds);
                // A variant of a matrix may be over long before the process is.
                if self.head.variant.is_some() {
                    line_to(&mut self.events, event)?;
                    self.flush()?;
                    return write_head(&self.folder, &self.head);
                }
            }
            _ => {}
        }
        line_to(&mut self.events, event)
    }

    fn log(&mut self, node: &str, time: &str, message: &str) -> std::io::Result<()> {
        let log = match self.logs.get_mut(node) {
            Some(log) => log,
            None => {
                fs::create_dir_all(self.folder.join("logs"))?;
                let path = log_path(&self.folder, node);
                let file = File::options().append(true).create(true).open(path)?;
                self.logs
                    .entry(node.to_owned())
                    .or_insert(BufWriter::new(file))
            }
        };
        writeln!(log, "{time} {message}")
    }

    fn flush(&mut self) -> std::io::Result<()> {
        failpoint::hit("record.write")?;
        self.events.flush()?;
        self.metrics.iter_mut().try_for_each(BufWriter::flush)?;
        self.logs.values_mut().try_for_each(BufWriter::flush)
    }
}

/// Where a node's log is, in the folder of its run.
pub fn log_path(run: &Path, node: &str) -> PathBuf {
    run.join("logs")
        .join(format!("{}.log", node.replace('/', "_")))
}

fn line_to(file: &mut impl Write, value: &impl serde::Serialize) -> std::io::Result<()> {
    serde_json::to_writer(&mut *file, value)?;
    file.write_all(b"\n")
}

fn write_head(folder: &Path, head: &Head) -> std::io::Result<()> {
    crate::atomic::write(&folder.join("run.json"), &serde_json::to_vec_pretty(head)?)
}
