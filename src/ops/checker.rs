//! A DuckDB of one's own in memory, to find out about SQL and files before a run.
//!
//! Opening one takes several milliseconds, so the one for checks is kept.

use std::sync::{Mutex, PoisonError};

use duckdb::{Config, Connection};

/// Opens a database in memory that never fetches or loads an extension behind the user's back.
pub(super) fn open() -> duckdb::Result<Connection> {
    let config = Config::default()
        .with("autoinstall_known_extensions", "false")?
        .with("autoload_known_extensions", "false")?;
    Connection::open_in_memory_with_flags(config)
}

/// Runs `work` on a database in memory, which must leave nothing behind in it.
///
/// The kept one is not in a thread-local: it would be closed after the library's own thread-locals are gone, which
/// corrupts memory.
pub(super) fn with<T>(work: impl FnOnce(&Connection) -> T) -> duckdb::Result<T> {
    static KEPT: Mutex<Option<Connection>> = Mutex::new(None);
    let keeper = || KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    let kept = keeper().take();
    let database = kept.map_or_else(open, Ok)?;
    let result = work(&database);
    *keeper() = Some(database);
    Ok(result)
}
