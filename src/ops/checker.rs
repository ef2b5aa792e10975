//! A DuckDB of one's own: in memory to find out about SQL and files before a run, or a file to work in.
//!
//! Opening one takes several milliseconds, so each thread keeps the one it checks with.

use std::cell::OnceCell;
use std::path::Path;

use duckdb::{Config, Connection};

/// Opens a database that never fetches or loads an extension behind the user's back; in memory without a `path`.
pub(super) fn open(path: Option<&Path>) -> duckdb::Result<Connection> {
    let config = Config::default()
        .with("autoinstall_known_extensions", "false")?
        .with("autoload_known_extensions", "false")?;
    match path {
        Some(path) => Connection::open_with_flags(path, config),
        None => Connection::open_in_memory_with_flags(config),
    }
}

/// Runs `work` on this thread's database in memory; whatever it makes is gone afterwards.
pub(super) fn with<T>(work: impl FnOnce(&Connection) -> T) -> duckdb::Result<T> {
    thread_local! {
        static DATABASE: OnceCell<Connection> = const { OnceCell::new() };
    }
    DATABASE.with(|kept| {
        let database = match kept.get() {
            Some(database) => database,
            None => {
                let database = open(None)?;
                kept.get_or_init(|| database)
            }
        };
        database.execute_batch("begin")?;
        let result = work(database);
        database.execute_batch("rollback")?;
        Ok(result)
    })
}
