//! The listener: events into the journal at once, everything else behind the run's back.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fs_err as fs;
use serde_json::{Map, Value, json};

use super::head::Head;
use super::history::History;
use super::journal::{FILES, Journal, Lock, folder_of, now};
use super::live::{Ending, Live, Pace};
use super::sent::Sent;
use super::settings::{Mode, Settings};
use super::sync::{progress, unfinished};
use super::system::Probe;
use crate::digest::Digest;
use crate::engine::{Event, EventKind, NodeStatus, Sink};

/// How often what was written is made safe against a power cut.
const SYNC: Duration = Duration::from_secs(1);
/// How often the machine is looked at.
const SAMPLE: Duration = Duration::from_secs(15);

/// What is known of a run when it starts.
pub struct NewTracking<'a> {
    pub settings: &'a Settings,
    /// `runs/`.
    pub runs: &'a Path,
    pub id: &'a str,
    /// What the run was asked to do: a run that asks for the same as one that did not finish goes on where that one stopped.
    pub request: Digest,
    pub config: Map<String, Value>,
    /// Name and op of each node.
    pub nodes: &'a [(String, String)],
    /// As typed, for the run's page.
    pub arguments: &'a [String],
    /// The line of the console that an event is worth.
    pub describe: fn(&EventKind) -> Option<String>,
    pub pace: Pace,
}

/// What has become of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    pub ending: Option<Ending>,
    /// The run's page, where the server has named its place.
    pub page: Option<String>,
    /// Rows of history, and those acknowledged.
    pub rows: u64,
    pub acknowledged: u64,
    /// Files the server did not take, and what it said.
    pub left_out: BTreeMap<String, String>,
    /// What could not be written to the journal.
    pub problem: Option<String>,
}

pub struct Tracker {
    book: Arc<Mutex<Book>>,
    describe: fn(&EventKind) -> Option<String>,
    keeper: Mutex<Option<Keeper>>,
    live: Mutex<Option<Live>>,
    settings: Settings,
    /// The run whose journal is continued.
    continues: Option<String>,
    _lock: Lock,
}

struct Book {
    folder: PathBuf,
    journal: Journal,
    history: History,
    head: Head,
    /// Changes of the head, and those the keeper has written.
    changes: u64,
    written: u64,
    /// The first problem.
    problem: Option<String>,
}

/// The thread that syncs the journal and looks at the machine.
struct Keeper {
    stop: Sender<()>,
    thread: JoinHandle<()>,
}

impl Tracker {
    /// Opens the journal of the run that this one continues, or a new one, and listens from now on.
    pub fn start(new: &NewTracking) -> io::Result<Self> {
        let (folder, mut head, lock, continues) = place(new)?;
        head.config.clone_from(&new.config);
        let mut history = History::new(
            new.nodes
                .iter()
                .map(|(node, op)| (node.as_str(), op.as_str())),
        );
        let mut journal = Journal::open(&folder, |row| history.remember(&row))?;
        head.write(&folder)?;
        if let Some(earlier) = &continues {
            journal.console(
                &format!("run {} goes on where {earlier} stopped", new.id),
                false,
            )?;
        }
        let book = Arc::new(Mutex::new(Book {
            folder: folder.clone(),
            journal,
            history,
            head,
            changes: 0,
            written: 0,
            problem: None,
        }));
        let metadata = [
            ("program", json!("flow")),
            ("args", json!(new.arguments)),
            ("startedAt", json!(jiff::Timestamp::now().to_string())),
        ];
        let metadata = metadata.map(|(key, value)| (key.to_owned(), value));
        let keeper = Keeper::start(Arc::clone(&book), Map::from_iter(metadata))?;
        let settings = new.settings.clone();
        let live = match (settings.mode, settings.key.clone()) {
            (Mode::Online, Some(key)) => Some(Live::start(
                folder,
                settings.base_url.clone(),
                key,
                new.pace,
            )?),
            _ => None,
        };
        Ok(Self {
            book,
            describe: new.describe,
            keeper: Mutex::new(Some(keeper)),
            live: Mutex::new(live),
            settings,
            continues,
            _lock: lock,
        })
    }

    /// The run whose journal this one goes on writing.
    pub fn continues(&self) -> Option<&str> {
        self.continues.as_deref()
    }

    /// Adds a copy of a file to those of the run.
    pub fn add_file(&self, name: &str, from: &Path) -> io::Result<()> {
        let folder = lock(&self.book).folder.clone();
        add_file(&folder, name, &fs::read(from)?)
    }

    /// Says how the run ended and sends the rest, as far as the server goes along.
    pub fn finish(&self, exit_code: i32) -> Report {
        if let Some(keeper) = lock(&self.keeper).take() {
            keeper.stop();
        }
        {
            let mut book = lock(&self.book);
            book.head.exit_code = Some(exit_code);
            let written = book.head.write(&book.folder);
            book.note(written);
        }
        let live = lock(&self.live).take();
        let ending = live.map(Live::end);
        let book = lock(&self.book);
        let sent = Sent::read(&book.folder, &self.settings.base_url).unwrap_or_default();
        let progress = progress(&book.folder, &self.settings.base_url);
        let (rows, acknowledged) =
            progress.map_or((0, 0), |progress| (progress.rows, progress.acknowledged));
        Report {
            ending,
            page: sent.page(&book.head.id),
            rows,
            acknowledged,
            left_out: sent.left_out,
            problem: book.problem.clone(),
        }
    }
}

impl Sink for Tracker {
    fn event(&self, event: &Event) {
        let text = (self.describe)(&event.kind);
        let mut book = lock(&self.book);
        let written = book.write(&event.kind, text.as_deref());
        book.note(written);
    }
}

impl Book {
    fn write(&mut self, event: &EventKind, text: Option<&str>) -> io::Result<()> {
        if let Some((metrics, axis)) = self.history.axis(event) {
            let is_known = |metric: &String| self.head.axes.contains_key(metric);
            if !metrics.iter().all(is_known) {
                let axes = metrics.into_iter().map(|metric| (metric, axis.clone()));
                self.head.axes.extend(axes);
                // At once, as no later run may say it again; and once more by the keeper, which may be writing an older one now.
                self.changes += 1;
                self.head.write(&self.folder)?;
            }
        }
        let mut is_error = false;
        if let EventKind::NodeFinished {
            node,
            status,
            fingerprint,
            ..
        } = event
        {
            is_error = *status == NodeStatus::Failed;
            if let Some(fingerprint) = fingerprint {
                self.fingerprint(node, &fingerprint.to_string());
            }
        }
        if let Some(text) = text {
            self.journal.console(text, is_error)?;
        }
        match self.history.point(event, Instant::now()) {
            Some(point) => self.journal.row(point.series, point.at, point.fields),
            None => Ok(()),
        }
    }

    /// Written with the next sync: there may be thousands at once, and all of them are known again in the next run.
    fn fingerprint(&mut self, node: &str, fingerprint: &str) {
        let all = self
            .head
            .config
            .entry("fingerprints")
            .or_insert_with(|| json!({}));
        if let Some(all) = all.as_object_mut() {
            all.insert(node.to_owned(), fingerprint.into());
            self.changes += 1;
        }
    }

    fn note(&mut self, result: io::Result<()>) {
        if let Err(error) = result {
            self.problem
                .get_or_insert_with(|| format!("the tracking journal is not complete: {error}"));
        }
    }
}

impl Keeper {
    /// `metadata`: what the run's page shows besides the machine.
    fn start(book: Arc<Mutex<Book>>, metadata: Map<String, Value>) -> io::Result<Self> {
        let (stop, stopped) = mpsc::channel();
        let (handles, folder) = {
            let book = lock(&book);
            (book.journal.handles()?, book.folder.clone())
        };
        let thread = std::thread::Builder::new()
            .name("tracking journal".to_owned())
            .spawn(move || {
                // Here, as looking for a GPU can take long.
                let mut probe = Probe::new();
                let written = describe_machine(&probe, metadata, &folder);
                lock(&book).note(written);
                let mut sampled = Instant::now();
                loop {
                    let is_over = stopped.recv_timeout(SYNC) != Err(RecvTimeoutError::Timeout);
                    if is_over || sampled.elapsed() >= SAMPLE {
                        sampled = Instant::now();
                        let sample = probe.sample();
                        let mut book = lock(&book);
                        let written = book.journal.system(sample);
                        book.note(written);
                    }
                    let changed = {
                        let book = lock(&book);
                        let changed = book.written < book.changes;
                        changed.then(|| (book.changes, book.head.clone()))
                    };
                    // Outside the lock: a slow disk must not keep the run waiting.
                    let synced = handles.iter().try_for_each(|file| file.sync_data());
                    let synced = synced.and_then(|()| match &changed {
                        Some((_, head)) => head.write(&folder),
                        None => Ok(()),
                    });
                    let mut book = lock(&book);
                    book.note(synced);
                    if let Some((changes, _)) = changed {
                        book.written = changes;
                    }
                    drop(book);
                    if is_over {
                        return;
                    }
                }
            })?;
        Ok(Self { stop, thread })
    }

    fn stop(self) {
        drop(self.stop);
        // It has nothing to tell; a panic in it has been printed.
        let _ = self.thread.join();
    }
}

impl Drop for Tracker {
    /// Without [`Tracker::finish`] the run has no end, as if it had been killed.
    fn drop(&mut self) {
        if let Some(keeper) = lock(&self.keeper).take() {
            keeper.stop();
        }
    }
}

/// The journal's folder, what it says, the right to it, and which run it continues.
fn place(new: &NewTracking) -> io::Result<(PathBuf, Head, Lock, Option<String>)> {
    let (settings, own) = (new.settings, folder_of(&new.runs.join(new.id)));
    let is_same = |head: &Head| {
        head.request == new.request
            && head.base_url == settings.base_url.as_str()
            && head.entity == settings.entity
            && head.project == settings.project
    };
    if let Some((folder, mut head, lock)) = unfinished(new.runs, is_same)? {
        fs::create_dir_all(new.runs.join(new.id))?;
        std::os::unix::fs::symlink(Path::new("..").join(&head.id).join("tracking"), &own)?;
        head.attempts += 1;
        head.exit_code = None;
        // The runs of one matrix stay together when some of them go on and others begin.
        head.group.clone_from(&settings.group);
        let earlier = head.id.clone();
        return Ok((folder, head, lock, Some(earlier)));
    }
    fs::create_dir_all(&own)?;
    let Some(lock) = Lock::take(&own)? else {
        return Err(io::Error::other(format!("`{}` is in use", own.display())));
    };
    let head = Head {
        id: new.id.to_owned(),
        name: settings.name.clone().unwrap_or_else(|| new.id.to_owned()),
        base_url: settings.base_url.to_string(),
        entity: settings.entity.clone(),
        project: settings.project.clone(),
        group: settings.group.clone(),
        job_type: settings.job_type.clone(),
        request: new.request,
        started: now(),
        attempts: 1,
        config: Map::new(),
        axes: BTreeMap::new(),
        exit_code: None,
    };
    Ok((own, head, lock, None))
}

/// Writes `wandb-metadata.json`.
fn describe_machine(
    probe: &Probe,
    mut metadata: Map<String, Value>,
    folder: &Path,
) -> io::Result<()> {
    metadata.extend(probe.metadata());
    add_file(
        folder,
        "wandb-metadata.json",
        &serde_json::to_vec_pretty(&metadata)?,
    )
}

fn add_file(folder: &Path, name: &str, content: &[u8]) -> io::Result<()> {
    let path = folder.join(FILES).join(name);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    crate::atomic::write(&path, content)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
