//! Tables: made in a transaction, hashed, kept once per digest as `t_<digest>`.

use std::collections::{BTreeMap, HashMap};

use duckdb::Connection;
use serde_json::Value;

use super::index::Record;
use super::{Artifact, Cache, CacheError, row_digest, sql};
use crate::config::{ArtifactKind, Columns};
use crate::digest::Digest;
use crate::failpoint;
use crate::ops::{Cell, Table};

impl Cache {
    /// Keeps the rows of `table`; their order counts only if `ordered`.
    pub fn store_table(&self, table: &Table, ordered: bool) -> Result<Artifact, CacheError> {
        let connection = self.database.connection()?;
        let kept = in_transaction(&connection, || {
            let staging = sql::quote(&staging_name());
            let columns: Vec<_> = table
                .columns
                .iter()
                .map(|(name, kind)| format!("{} {}", sql::quote(name), kind.sql()))
                .collect();
            connection
                .execute_batch(&format!("create table {staging} ({})", columns.join(", ")))?;
            let mut appender = connection.appender(staging.trim_matches('"'))?;
            for row in &table.rows {
                appender.append_row(duckdb::appender_params_from_iter(row))?;
            }
            appender.flush()?;
            drop(appender);
            self.adopt(&connection, &staging, ordered, None)
        });
        kept.map_err(|error| error.at(self.database.path()))
    }

    /// Keeps the result of one SELECT over `inputs` (views named by their ports); `params` are bound as `$name`.
    ///
    /// The result is ordered, and its digest says so, if the query's outermost level has an ORDER BY.
    pub fn store_query(
        &self,
        inputs: &BTreeMap<String, Artifact>,
        query: &str,
        params: &[(String, Value)],
    ) -> Result<Artifact, CacheError> {
        let connection = self.database.connection()?;
        sql::create_views(&connection, inputs)?;
        let ordered = sql::is_ordered(&connection, query)?;
        let query = query.trim().trim_end_matches(';');
        // The query alone fails with the right line number.
        let failed = |error: duckdb::Error| {
            self.query_error(connection.prepare(query).err().unwrap_or(error))
        };
        self.keep_query(&connection, query, params, ordered, None, failed)
    }

    /// Keeps the rows of a query, which have to have the digest `wanted` where there is one.
    pub(super) fn keep_query(
        &self,
        connection: &Connection,
        query: &str,
        params: &[(String, Value)],
        ordered: bool,
        wanted: Option<&Digest>,
        failed: impl Fn(duckdb::Error) -> CacheError,
    ) -> Result<Artifact, CacheError> {
        let kept = in_transaction(connection, || {
            let staging = sql::quote(&staging_name());
            let mut statement = connection
                .prepare(&format!("create table {staging} as\n{query}\n"))
                .map_err(&failed)?;
            sql::bind(&mut statement, params)?;
            statement.raw_execute().map_err(&failed)?;
            drop(statement);
            self.adopt(connection, &staging, ordered, wanted)
        });
        kept.map_err(|error| error.at(self.database.path()))
    }

    /// Column names and types of a table artifact, in order.
    pub fn columns(&self, table: &Digest) -> Result<Columns, CacheError> {
        let connection = self.database.connection()?;
        columns(&connection, &sql::quote(&sql::table_name(table)))
    }

    /// Column names and types of all table artifacts, in order.
    pub fn table_columns(&self) -> Result<HashMap<Digest, Columns>, CacheError> {
        if !self.database.path().exists() {
            return Ok(HashMap::new());
        }
        let connection = self.database.connection()?;
        let sql = "select table_name, column_name, data_type from duckdb_columns()
            where starts_with(table_name, 't_') order by table_name, column_index";
        let mut statement = connection.prepare(sql)?;
        let mut rows = statement.query([])?;
        let mut tables: HashMap<Digest, Columns> = HashMap::new();
        while let Some(row) = rows.next()? {
            let table: String = row.get(0)?;
            if let Some(digest) = table.strip_prefix("t_").and_then(|name| name.parse().ok()) {
                tables
                    .entry(digest)
                    .or_default()
                    .push((row.get(1)?, row.get(2)?));
            }
        }
        Ok(tables)
    }

    /// Whether the row order of a table artifact counts.
    pub fn is_ordered(&self, table: &Digest) -> bool {
        self.index()
            .record(table)
            .is_some_and(|record| record.ordered)
    }

    /// Runs `work` on a connection of its own in which every table among `inputs` is a view named by its port.
    pub fn with_views<T, E: From<CacheError>>(
        &self,
        inputs: &BTreeMap<String, Artifact>,
        work: impl FnOnce(&Connection) -> Result<T, E>,
    ) -> Result<T, E> {
        let connection = self.database.connection()?;
        sql::create_views(&connection, inputs)?;
        work(&connection)
    }

    /// Hashes the table `staging` and renames it after its digest, or drops it where that table is there already, or
    /// has another digest than `wanted`.
    fn adopt(
        &self,
        connection: &Connection,
        staging: &str,
        ordered: bool,
        wanted: Option<&Digest>,
    ) -> Result<Kept, CacheError> {
        let (digest, rows, bytes) = table_digest(connection, staging, ordered)?;
        CacheError::other_content(wanted, digest)?;
        let artifact = Artifact {
            kind: ArtifactKind::Table,
            digest,
            rows: Some(rows),
            bytes,
        };
        let record = Record {
            artifact: artifact.clone(),
            ordered,
            files: Vec::new(),
        };
        // One at a time: two nodes that made the same table must not both rename theirs to the same name.
        let _one = self
            .adopting
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if self.index().record(&digest).is_some() {
            return Ok(Kept::Old(artifact));
        }
        connection.execute_batch(&format!(
            "alter table {staging} rename to {}",
            sql::quote(&sql::table_name(&digest))
        ))?;
        super::committer::insert_record(connection, &record)?;
        failpoint::hit("table.commit")?;
        connection.execute_batch("commit")?;
        failpoint::pass("table.committed");
        self.index().add_record(record);
        Ok(Kept::New(artifact))
    }

    fn query_error(&self, error: duckdb::Error) -> CacheError {
        match CacheError::database(error, self.database.path()) {
            CacheError::Database(error) => CacheError::Query(error.to_string()),
            other => other,
        }
    }
}

enum Kept {
    New(Artifact),
    Old(Artifact),
}

/// Runs `work` in a transaction, which `work` commits itself where there is something new.
fn in_transaction(
    connection: &Connection,
    work: impl FnOnce() -> Result<Kept, CacheError>,
) -> Result<Artifact, CacheError> {
    connection.execute_batch("begin")?;
    match work() {
        Ok(Kept::New(artifact)) => Ok(artifact),
        Ok(Kept::Old(artifact)) => {
            connection.execute_batch("rollback")?;
            Ok(artifact)
        }
        Err(error) => {
            // The first error is the one to report; a failed rollback adds nothing to it.
            let _ = connection.execute_batch("rollback");
            Err(error)
        }
    }
}

fn staging_name() -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!(
        "staging_{}_{}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    )
}

/// Digest, rows and bytes of a table as it is in the database; `table` is quoted.
pub(super) fn table_digest(
    connection: &Connection,
    table: &str,
    ordered: bool,
) -> Result<(Digest, u64, u64), CacheError> {
    let columns = columns(connection, table)?;
    let mut statement = connection.prepare(&format!("select * from {table}"))?;
    let batches = statement.stream_arrow([])?;
    row_digest::digest(&columns, ordered, batches)
}

fn columns(connection: &Connection, table: &str) -> Result<Columns, CacheError> {
    let mut statement = connection.prepare(&format!(
        "select column_name, column_type from (describe {table})"
    ))?;
    let columns = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(columns.collect::<Result<_, _>>()?)
}

impl duckdb::ToSql for Cell {
    fn to_sql(&self) -> duckdb::Result<duckdb::types::ToSqlOutput<'_>> {
        use duckdb::types::{ToSqlOutput, ValueRef};
        Ok(ToSqlOutput::Borrowed(match self {
            Self::Null => ValueRef::Null,
            Self::Boolean(value) => ValueRef::Boolean(*value),
            Self::Integer(number) => ValueRef::BigInt(*number),
            Self::Double(number) => ValueRef::Double(*number),
            Self::Text(text) => ValueRef::Text(text.as_bytes()),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::{Holder, RunLock};
    use crate::ops::ColumnType;

    fn cache(folder: &std::path::Path) -> Cache {
        Cache::open(
            folder,
            RunLock::acquire(folder, &Holder::new("test"), |_| false).unwrap(),
        )
        .unwrap()
    }

    fn people(rows: &[(&str, i64)]) -> Table {
        let mut table = Table::new(&[("name", ColumnType::Text), ("age", ColumnType::Integer)]);
        table.rows = rows
            .iter()
            .map(|(name, age)| vec![Cell::from(*name), Cell::from(*age)])
            .collect();
        table
    }

    fn query(
        cache: &Cache,
        input: &Artifact,
        sql: &str,
        params: &[(String, Value)],
    ) -> Result<Artifact, CacheError> {
        cache.store_query(
            &BTreeMap::from([("rows".to_owned(), input.clone())]),
            sql,
            params,
        )
    }

    #[test]
    fn a_table_is_kept_once_and_its_order_counts_only_when_asked() {
        let folder = tempfile::tempdir().unwrap();
        let cache = cache(folder.path());
        let one = cache
            .store_table(&people(&[("a", 1), ("b", 2)]), false)
            .unwrap();
        let other = cache
            .store_table(&people(&[("b", 2), ("a", 1)]), false)
            .unwrap();
        assert_eq!(one, other);
        assert_eq!(one.rows, Some(2));
        let ordered = cache
            .store_table(&people(&[("b", 2), ("a", 1)]), true)
            .unwrap();
        assert_ne!(ordered.digest, one.digest);
        assert!(cache.is_ordered(&ordered.digest) && !cache.is_ordered(&one.digest));
        let sorted = query(
            &cache,
            &one,
            "select * from rows order by name desc -- newest first",
            &[],
        )
        .unwrap();
        assert_eq!(sorted.digest, ordered.digest);
        let with = query(
            &cache,
            &one,
            "with x as (select * from rows) from x order by name desc limit 5;",
            &[],
        )
        .unwrap();
        assert_eq!(with.digest, ordered.digest);
        let inner = query(
            &cache,
            &one,
            "select * from (select * from rows order by name desc)",
            &[],
        )
        .unwrap();
        assert_eq!(inner.digest, one.digest);
        let names: Vec<_> = cache.columns(&one.digest).unwrap();
        assert_eq!(
            names,
            [
                ("name".to_owned(), "VARCHAR".to_owned()),
                ("age".to_owned(), "BIGINT".to_owned())
            ]
        );
    }

    #[test]
    fn params_are_bound_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let cache = cache(folder.path());
        let people = cache
            .store_table(&people(&[("a", 1), ("b", 2), ("c", 3)]), false)
            .unwrap();
        let params = [
            ("least".to_owned(), Value::from(2)),
            ("names".to_owned(), serde_json::json!(["b", "it's \"c\""])),
            ("unused".to_owned(), Value::from("x")),
        ];
        let sql =
            "select * from rows where age >= $least and list_contains($names::varchar[], name)";
        assert_eq!(query(&cache, &people, sql, &params).unwrap().rows, Some(1));
        let sql =
            "select len($names::varchar[]) n, ($names::varchar[])[2] as second from rows limit 1";
        let listed = query(&cache, &people, sql, &params).unwrap();
        let inputs = BTreeMap::from([("x".to_owned(), listed)]);
        let read = cache
            .with_views(&inputs, |connection| Table::query(connection, "from x"))
            .unwrap_or_default();
        assert_eq!(read.rows, [[Cell::Integer(2), Cell::from("it's \"c\"")]]);
        let error = query(&cache, &people, "select $most from rows", &params).unwrap_err();
        insta::assert_snapshot!(error, @"the query uses `$most`, which is not a param; there are `$least`, `$names`, `$unused`");
    }

    #[test]
    fn what_is_not_one_select_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let cache = cache(folder.path());
        let people = cache.store_table(&people(&[("a", 1)]), false).unwrap();
        let refused = |sql: &str| query(&cache, &people, sql, &[]).unwrap_err().to_string();
        insta::assert_snapshot!(refused("select 1; select 2"), @"a query is one SELECT; there are 2 statements");
        insta::assert_snapshot!(refused("drop table entries"), @"a query is one SELECT; this is another statement");
        insta::assert_snapshot!(refused("select *\nfrom rows wher age"), @r#"syntax error at or near "age" (line 2, column 16)"#);
        insta::assert_snapshot!(refused("select agee from rows"), @r#"
        Binder Error: Referenced column "agee" not found in FROM clause!
        Candidate bindings: "age", "name"

        LINE 1: select agee from rows
                       ^
        "#);
    }

    #[test]
    fn threads_may_make_the_same_table_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let cache = cache(folder.path());
        let made: Vec<Artifact> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        cache
                            .store_query(
                                &BTreeMap::new(),
                                "select range as n from range(5000)",
                                &[],
                            )
                            .unwrap()
                    })
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .collect()
        });
        assert!(made.iter().all(|artifact| *artifact == made[0]));
    }
}
