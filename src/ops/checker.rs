//! A DuckDB of one's own in memory, to find out about SQL and files before a run.
//!
//! Opening one takes several milliseconds, so those for checks are kept: as many as were in use at a time.

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
/// They are not in thread-locals: those would be closed after the library's own thread-locals are gone, which
/// corrupts memory.
pub(super) fn with<T>(work: impl FnOnce(&Connection) -> T) -> duckdb::Result<T> {
    static KEPT: Mutex<Vec<Connection>> = Mutex::new(Vec::new());
    let keeper = || KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    let kept = keeper().pop();
    let database = kept.map_or_else(open, Ok)?;
    let result = work(&database);
    keeper().push(database);
    Ok(result)
}
