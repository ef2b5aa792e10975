//! The DuckDB file, opened when needed and closed when idle, because DuckDB admits no other process while one writes.

use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use duckdb::{AccessMode, Config, Connection};

use super::layout::Layout;
use super::{CacheError, memory};

/// How long to wait for another process that has the file open: it closes it after each commit.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// How long to sleep between two tries.
pub(super) const RETRY: Duration = Duration::from_millis(25);

/// The same where there is something to show without the file.
pub(super) const LITTLE_PATIENCE: Duration = Duration::from_secs(2);

/// All nodes share one database, which may hold this part of the free memory; models and sources need the rest.
const MEMORY: u64 = 2;

const SCHEMA: &str = "
    create table if not exists entries (seq bigint, fingerprint varchar, pipeline varchar, node varchar, op varchar,
        manifest varchar, outputs varchar, metrics varchar, seconds double, created varchar);
    create table if not exists artifacts (digest varchar, kind varchar, row_count bigint, bytes bigint, ordered boolean,
        files varchar, created varchar);
    create table if not exists latest (seq bigint, pipeline varchar, node varchar, fingerprint varchar);
    create table if not exists verdicts (digest varchar, choice bigint, probability double, detail varchar);
";

#[derive(Debug)]
pub(super) struct Database {
    path: PathBuf,
    /// Where it writes what does not fit the memory; a folder of this process alone.
    spill: PathBuf,
    writable: bool,
    patience: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The file could not be opened or made: what it holds is not known.
    doubtful: bool,
    root: Option<Connection>,
    users: usize,
    idle_since: Option<Instant>,
}

/// A connection of its own; the database stays open at least as long.
pub(super) struct Lease<'a> {
    connection: Option<Connection>,
    database: &'a Database,
}

impl Database {
    pub(super) fn new(layout: &Layout, writable: bool) -> Self {
        Self {
            path: layout.database(),
            spill: layout.spill(),
            writable,
            patience: PATIENCE,
            state: Mutex::default(),
        }
    }

    pub(super) fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn connection(&self) -> Result<Lease<'_>, CacheError> {
        let mut state = self.state();
        let root = match state.root.take() {
            Some(root) => root,
            None => {
                let opened = self.open();
                state.doubtful |= opened
                    .as_ref()
                    .is_err_and(|error| !matches!(error, CacheError::Busy { .. }));
                opened?
            }
        };
        let connection = root.try_clone();
        state.root = Some(root);
        let connection = connection.map_err(|error| CacheError::database(error, &self.path))?;
        state.users += 1;
        state.idle_since = None;
        Ok(Lease {
            connection: Some(connection),
            database: self,
        })
    }

    /// Whether the file failed to open, so that nothing that was read before can speak for it.
    pub(super) fn is_doubtful(&self) -> bool {
        self.state().doubtful
    }

    /// Opens the file; where another process has it open, tries again for some seconds.
    fn open(&self) -> Result<Connection, CacheError> {
        let start = Instant::now();
        loop {
            let opened = self
                .try_open()
                .map_err(|error| CacheError::database(error, &self.path));
            match opened {
                Err(CacheError::Busy { .. }) if start.elapsed() < self.patience => {
                    std::thread::sleep(RETRY)
                }
                other => return other,
            }
        }
    }

    /// Writes a new database file at `path`, whole and closed when this returns.
    pub(super) fn create(
        path: &Path,
        fill: impl FnOnce(&Connection) -> Result<(), CacheError>,
    ) -> Result<(), CacheError> {
        let connection = Connection::open(path)?;
        connection.execute_batch(SCHEMA)?;
        connection.execute_batch("begin")?;
        fill(&connection)?;
        connection.execute_batch("commit; checkpoint")?;
        connection.close().map_err(|(_, error)| error)?;
        Ok(fs_err::File::open(path)?.sync_all()?)
    }

    fn try_open(&self) -> duckdb::Result<Connection> {
        let mode = if self.writable {
            AccessMode::ReadWrite
        } else {
            AccessMode::ReadOnly
        };
        // Nothing is ever fetched or loaded behind the user's back.
        let config = Config::default()
            .access_mode(mode)?
            .with("autoinstall_known_extensions", "false")?
            .with("autoload_known_extensions", "false")?
            .max_memory(&format!("{}B", memory::share(MEMORY)))?
            .with("temp_directory", self.spill.to_string_lossy())?;
        let connection = Connection::open_with_flags(&self.path, config)?;
        if self.writable {
            connection.execute_batch(SCHEMA)?;
        }
        Ok(connection)
    }

    /// Closes the file if nobody has used it for `idle`.
    pub(super) fn close_if_idle(&self, idle: Duration) {
        let mut state = self.state();
        if state.users == 0
            && state
                .idle_since
                .is_some_and(|since| since.elapsed() >= idle)
        {
            state.root = None;
            state.idle_since = None;
        }
    }
}

impl Deref for Lease<'_> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.connection.as_ref().expect("present until dropped")
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        self.connection = None;
        let mut state = self.database.state();
        state.users -= 1;
        if state.users == 0 {
            state.idle_since = Some(Instant::now());
        }
    }
}
