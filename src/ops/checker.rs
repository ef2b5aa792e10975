//! A DuckDB of one's own: in memory to find out about SQL and files before a run, or a file to work in.
//!
//! Opening one takes several milliseconds, so the one for checks is kept.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use duckdb::{Config, Connection};

use crate::cache::share_of_memory;

/// A database to work in may hold this part of the free memory: it lives beside the cache's.
const MEMORY: u64 = 4;

/// Opens a database that never fetches or loads an extension behind the user's back; in memory without a `path`.
pub(super) fn open(path: Option<&Path>) -> duckdb::Result<Connection> {
    let config = Config::default()
        .with("autoinstall_known_extensions", "false")?
        .with("autoload_known_extensions", "false")?;
    match path {
        Some(path) => {
            // Rows have no order there; keeping one would hold more of them in memory.
            let config = config
                .max_memory(&format!("{}B", share_of_memory(MEMORY)))?
                .with("preserve_insertion_order", "false")?;
            Connection::open_with_flags(path, config)
        }
        None => Connection::open_in_memory_with_flags(config),
    }
}

/// Runs `work` on a database in memory, which must leave nothing behind in it.
///
/// The kept one is not in a thread-local: it would be closed after the library's own thread-locals are gone, which
/// corrupts memory.
pub(super) fn with<T>(work: impl FnOnce(&Connection) -> T) -> duckdb::Result<T> {
    static KEPT: Mutex<Option<Connection>> = Mutex::new(None);
    let keeper = || KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    let kept = keeper().take();
    let database = kept.map_or_else(|| open(None), Ok)?;
    let result = work(&database);
    *keeper() = Some(database);
    Ok(result)
}
