//! A database in memory beside the cache's tables, for rows on their way into one of them.

use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};

use duckdb::Connection;

use super::database::Lease;
use super::{Cache, CacheError, sql};

/// Tables made here are gone with it. They share the cache's memory: what does not fit is spilled as its own work is.
///
/// Rows written to a file are compressed first, which costs more than reading most formats does; here they are not.
pub struct Workspace<'a> {
    connection: Lease<'a>,
    name: String,
    /// The database of the cache itself.
    home: String,
}

impl Cache {
    pub(crate) fn workspace(&self) -> Result<Workspace<'_>, CacheError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let connection = self.database.connection()?;
        let name = format!("work_{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let home = connection.query_row("select current_database()", [], |row| row.get(0))?;
        let quoted = sql::quote(&name);
        connection.execute_batch(&format!("attach ':memory:' as {quoted}; use {quoted}"))?;
        Ok(Workspace {
            connection,
            name,
            home,
        })
    }
}

impl Workspace<'_> {
    /// A table or view made here, as other connections of the cache name it.
    pub(crate) fn name_of(&self, table: &str) -> String {
        format!("{}.main.{}", sql::quote(&self.name), sql::quote(table))
    }
}

impl Deref for Workspace<'_> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.connection
    }
}

impl Drop for Workspace<'_> {
    fn drop(&mut self) {
        let leave = format!(
            "use {}; detach {}",
            sql::quote(&self.home),
            sql::quote(&self.name)
        );
        // Where this fails, the memory is free again once the cache closes its file.
        let _ = self.connection.execute_batch(&leave);
    }
}
