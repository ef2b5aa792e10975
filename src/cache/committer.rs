//! Makes results durable in groups: one batch of syncs and one transaction for all that finished within a tenth of a second.
//!
//! A result is visible to the next node at once; until its group is committed a crash makes it as if it never ran.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use duckdb::{Connection, params};

use super::database::Database;
use super::index::{Entry, Record};
use super::layout::{Layout, remove};
use super::{CacheError, ledger, sql};
use crate::config::ArtifactKind;
use crate::digest::Digest;
use crate::failpoint;
use crate::graph::Fingerprint;

/// How long a result may wait for company.
const GROUP: Duration = Duration::from_millis(100);
/// How long the database stays open without use.
const IDLE: Duration = Duration::from_millis(200);

#[derive(Debug)]
pub(super) enum Change {
    Entry {
        seq: i64,
        entry: Arc<Entry>,
        manifest: String,
        records: Vec<Arc<Record>>,
        /// The node ran here, and its scratch is of no more use.
        ran: bool,
    },
    /// An artifact whose files have other times than recorded, or one that was fetched.
    Record(Arc<Record>),
    Latest {
        seq: i64,
        pipeline: String,
        node: String,
        fingerprint: Fingerprint,
    },
}

enum Message {
    Change(Box<Change>),
    Flush(Sender<Result<(), CacheError>>),
}

#[derive(Debug)]
pub(super) struct Committer {
    queue: Option<Sender<Message>>,
    thread: Option<JoinHandle<()>>,
    failed: Arc<Mutex<Option<String>>>,
}

struct Worker {
    database: Arc<Database>,
    layout: Layout,
    /// Not durable yet; kept when a commit fails, so that nothing is lost while the process lives.
    pending: Vec<Change>,
    failed: Arc<Mutex<Option<String>>>,
}

impl Committer {
    pub(super) fn start(database: Arc<Database>, layout: Layout) -> Result<Self, CacheError> {
        let (queue, inbox) = mpsc::channel();
        let failed = Arc::default();
        let mut worker = Worker {
            database,
            layout,
            pending: Vec::new(),
            failed: Arc::clone(&failed),
        };
        let thread = std::thread::Builder::new()
            .name("committer".to_owned())
            .spawn(move || worker.work(&inbox))?;
        Ok(Self {
            queue: Some(queue),
            thread: Some(thread),
            failed,
        })
    }

    /// Hands a change over; fails where an earlier group could not be committed.
    pub(super) fn submit(&self, change: Change) -> Result<(), CacheError> {
        if self
            .failed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_some()
        {
            return self.flush();
        }
        self.send(Message::Change(Box::new(change)))
    }

    /// Waits until everything submitted is durable.
    pub(super) fn flush(&self) -> Result<(), CacheError> {
        let (done, wait) = mpsc::channel();
        self.send(Message::Flush(done))?;
        wait.recv().unwrap_or_else(|_| Err(gone()))
    }

    fn send(&self, message: Message) -> Result<(), CacheError> {
        self.queue
            .as_ref()
            .and_then(|queue| queue.send(message).ok())
            .ok_or_else(gone)
    }
}

fn gone() -> CacheError {
    CacheError::Io(std::io::Error::other(
        "the thread that commits results has ended",
    ))
}

impl Drop for Committer {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            // A panic there was already reported by `flush`.
            let _ = thread.join();
        }
    }
}

impl Worker {
    fn work(&mut self, inbox: &Receiver<Message>) {
        let mut due: Option<Instant> = None;
        loop {
            let patience = due.map_or(GROUP, |due| due.saturating_duration_since(Instant::now()));
            match inbox.recv_timeout(patience) {
                Ok(Message::Change(change)) => {
                    self.pending.push(*change);
                    due.get_or_insert_with(|| Instant::now() + GROUP);
                }
                Ok(Message::Flush(done)) => {
                    due = None;
                    // The asker may have given up waiting; the commit stands all the same.
                    let _ = done.send(self.commit());
                }
                Err(RecvTimeoutError::Timeout) if due.is_some() => {
                    due = None;
                    // The error is kept and given to the next who submits or flushes.
                    let _ = self.commit();
                }
                Err(RecvTimeoutError::Timeout) => self.database.close_if_idle(IDLE),
                Err(RecvTimeoutError::Disconnected) => {
                    let _ = self.commit();
                    return;
                }
            }
        }
    }

    fn commit(&mut self) -> Result<(), CacheError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let committed = self
            .sync_files()
            .and_then(|()| Ok(ledger::add_entries(&self.layout, &self.pending)?))
            .and_then(|()| self.write_rows());
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        match committed {
            Ok(()) => {
                *failed = None;
                for change in self.pending.drain(..) {
                    if let Change::Entry {
                        entry, ran: true, ..
                    } = change
                    {
                        failpoint::pass("scratch.remove");
                        // A leftover is found and dropped at the next start.
                        let _ = remove(&self.layout.partial(entry.fingerprint));
                        let _ = remove(&self.layout.job(entry.fingerprint));
                        let _ = remove(&self.layout.failed_job(entry.fingerprint));
                    }
                }
                Ok(())
            }
            Err(error) => {
                *failed = Some(error.to_string());
                Err(error)
            }
        }
    }

    /// Brings new objects to the disk before the rows that name them.
    fn sync_files(&self) -> Result<(), CacheError> {
        let mut records = self.pending.iter().flat_map(|change| match change {
            Change::Entry { records, .. } => records.as_slice(),
            Change::Record(record) => std::slice::from_ref(record),
            Change::Latest { .. } => &[],
        });
        if !records.any(|record| record.artifact.kind == ArtifactKind::Files) {
            return Ok(());
        }
        failpoint::hit("entries.sync")?;
        // One call for the whole file system: a sync per file would cost more than most nodes take.
        let folder = std::fs::File::open(self.layout.objects())?;
        rustix::fs::syncfs(&folder).map_err(|errno| {
            let error = std::io::Error::from(errno);
            let objects = self.layout.objects();
            let message = format!("`{}` cannot be synced: {error}", objects.display());
            std::io::Error::new(error.kind(), message)
        })?;
        Ok(())
    }

    fn write_rows(&self) -> Result<(), CacheError> {
        let connection = self.database.connection()?;
        failpoint::hit("entries.begin")?;
        connection.execute_batch("begin")?;
        let written = insert(&connection, &self.pending)
            .and_then(|()| Ok(failpoint::hit("entries.commit")?))
            .and_then(|()| connection.execute_batch("commit").map_err(CacheError::from));
        if written.is_err() {
            // The first error is the one to report.
            let _ = connection.execute_batch("rollback");
        }
        written.map_err(|error| error.at(self.database.path()))?;
        failpoint::pass("entries.committed");
        Ok(())
    }
}

pub(super) fn insert(connection: &Connection, changes: &[Change]) -> Result<(), CacheError> {
    let mut records: Vec<&Arc<Record>> = Vec::new();
    let mut entries = connection.appender("entries")?;
    let mut latest = connection.appender("latest")?;
    for change in changes {
        match change {
            Change::Entry {
                seq,
                entry,
                manifest,
                records: new,
                ..
            } => {
                records.extend(new);
                entries.append_row(params![
                    seq,
                    entry.fingerprint.to_string(),
                    entry.pipeline,
                    entry.node,
                    entry.op,
                    manifest,
                    json(&entry.outputs)?,
                    json(&entry.metrics)?,
                    entry.seconds,
                    entry.created,
                ])?;
            }
            Change::Record(record) => {
                delete_records(connection, &[record.artifact.digest])?;
                records.push(record);
            }
            Change::Latest {
                seq,
                pipeline,
                node,
                fingerprint,
            } => {
                latest.append_row(params![seq, pipeline, node, fingerprint.to_string()])?;
            }
        }
    }
    entries.flush()?;
    latest.flush()?;
    let mut artifacts = connection.appender("artifacts")?;
    for record in records {
        artifacts.append_row(params![
            record.artifact.digest.to_string(),
            if record.artifact.kind == ArtifactKind::Table {
                "table"
            } else {
                "files"
            },
            record.artifact.rows,
            record.artifact.bytes,
            record.ordered,
            json(&record.files)?,
            now(),
        ])?;
    }
    Ok(artifacts.flush()?)
}

/// Writes the row of one artifact in the caller's transaction.
pub(super) fn insert_record(connection: &Connection, record: &Record) -> Result<(), CacheError> {
    insert(connection, &[Change::Record(Arc::new(record.clone()))])
}

pub(super) fn delete_records(
    connection: &Connection,
    digests: &[Digest],
) -> Result<(), CacheError> {
    delete(connection, "artifacts", "digest", digests)
}

/// Deletes the rows with these keys in the caller's transaction, by one statement: one each would read the table each time.
pub(super) fn delete(
    connection: &Connection,
    table: &str,
    column: &str,
    keys: &[impl std::fmt::Display],
) -> Result<(), CacheError> {
    if keys.is_empty() {
        return Ok(());
    }
    // Digests: nothing that could be SQL.
    let keys: Vec<_> = keys.iter().map(|key| format!("'{key}'")).collect();
    Ok(connection.execute_batch(&format!(
        "delete from {table} where {column} in ({})",
        keys.join(", ")
    ))?)
}

/// Drops the table of an artifact in the caller's transaction.
pub(super) fn drop_table(connection: &Connection, digest: &Digest) -> Result<(), CacheError> {
    Ok(connection.execute_batch(&format!(
        "drop table if exists {}",
        sql::quote(&sql::table_name(digest))
    ))?)
}

fn json(value: &impl serde::Serialize) -> Result<String, CacheError> {
    serde_json::to_string(value).map_err(|error| CacheError::Io(error.into()))
}

pub(super) fn now() -> String {
    jiff::Timestamp::now()
        .strftime("%Y-%m-%dT%H:%M:%S.%3fZ")
        .to_string()
}
