//! Tables of a cache under the names people know them by, for queries over several of them.

use std::path::Path;
use std::time::Instant;

use duckdb::{Config, Connection};

use super::database::{PATIENCE, RETRY};
use super::layout::Layout;
use super::sql::{quote, table_name};
use super::{Artifact, CacheError};
use crate::config::ArtifactKind;

/// What the cache's own database is called there.
const CACHE: &str = "flow cache";

/// A connection in which every table of `names` is a view: `clean`, and for a dotted name (`split.train`) a view in a
/// schema of the first part. What it makes is forgotten with it; the cache is read only.
pub fn named_views<'a>(
    folder: &Path,
    names: impl IntoIterator<Item = (&'a str, &'a Artifact)>,
) -> Result<Connection, CacheError> {
    let layout = Layout::new(folder);
    layout.check_version()?;
    let connection = open(&layout.database())?;
    for (name, artifact) in names {
        if artifact.kind != ArtifactKind::Table {
            continue;
        }
        let target = match name.split_once('.') {
            // A name with two dots has no other place than under its first part, quoted.
            Some((schema, rest)) => {
                connection
                    .execute_batch(&format!("create schema if not exists {}", quote(schema)))?;
                format!("{}.{}", quote(schema), quote(rest))
            }
            None => quote(name),
        };
        let sql = format!(
            "create or replace view {target} as select * from {}.main.{}",
            quote(CACHE),
            quote(&table_name(&artifact.digest))
        );
        // A table that `flow cache gc` has dropped is no name.
        match connection.execute_batch(&sql) {
            Err(error) if error.to_string().contains("does not exist") => {}
            other => other?,
        }
    }
    Ok(connection)
}

/// A database in memory with the cache's attached; waits for a process that has it open.
fn open(database: &Path) -> Result<Connection, CacheError> {
    // Nothing is ever fetched or loaded behind the user's back.
    let config = Config::default()
        .with("autoinstall_known_extensions", "false")?
        .with("autoload_known_extensions", "false")?;
    let connection = Connection::open_in_memory_with_flags(config)?;
    let path = database.display().to_string().replace('\'', "''");
    let attach = format!("attach '{path}' as {} (read_only)", quote(CACHE));
    let start = Instant::now();
    loop {
        match connection
            .execute_batch(&attach)
            .map_err(|error| CacheError::database(error, database))
        {
            Err(CacheError::Busy { .. }) if start.elapsed() < PATIENCE => std::thread::sleep(RETRY),
            other => break other?,
        }
    }
    Ok(connection)
}
