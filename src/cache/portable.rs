//! Artifacts outside the cache, on their way to another machine: a table as one Parquet file, files as a folder.
//!
//! What comes back is known by its content alone: where that gives another digest than was promised, it is refused.

use std::path::{Path, PathBuf};

use duckdb::Connection;
use fs_err as fs;
use serde::{Deserialize, Serialize};

use super::carried::Carried;
use super::error::first_line;
use super::layout::remove;
use super::objects::{copy_tree, scan};
use super::{Artifact, Cache, CacheError, sql};
use crate::config::{ArtifactKind, Columns};

/// The key under which a Parquet file says what its table was.
const KEY: &str = "flow";

/// What Parquet itself does not keep.
#[derive(Debug, Serialize, Deserialize)]
struct Described {
    ordered: bool,
    /// Name and type of each column.
    columns: Columns,
}

impl Cache {
    /// Writes an artifact to `place`, which is replaced whole or not at all: a table as a Parquet file with its rows in
    /// the order in which they are kept, files as a folder. The folder above has to be there.
    ///
    /// # Errors
    /// The artifact is not in the cache or no longer what it was; a column has a type that cannot travel; the disk.
    pub fn export_artifact(&self, artifact: &Artifact, place: &Path) -> Result<(), CacheError> {
        if let Some(problem) = self.problem(artifact)? {
            return Err(CacheError::Files {
                path: match artifact.kind {
                    ArtifactKind::Table => sql::table_name(&artifact.digest).into(),
                    ArtifactKind::Files => self.object_path(&artifact.digest),
                },
                message: problem,
            });
        }
        let new = beside(place)?;
        let written = match artifact.kind {
            ArtifactKind::Table => self.write_parquet(artifact, &new),
            ArtifactKind::Files => {
                copy_tree(&self.object_path(&artifact.digest), &new).map_err(CacheError::from)
            }
        };
        let moved = written.and_then(|()| {
            // A folder can only take the place of an empty one.
            remove(place)?;
            Ok(fs::rename(&new, place)?)
        });
        if moved.is_err() {
            // The first error is the one to report.
            let _ = remove(&new);
        }
        moved
    }

    /// Takes what lies at `place`, where [`Cache::export_artifact`] wrote it, into the cache; `place` is left as it is.
    ///
    /// The digest is made from the content. Nothing is visible before it is whole, and what is there already is not read.
    ///
    /// # Errors
    /// The content is not that of `artifact`, or is not readable at all; the disk.
    pub fn import_artifact(
        &self,
        artifact: &Artifact,
        ordered: bool,
        place: &Path,
    ) -> Result<(), CacheError> {
        if self.problem(artifact)?.is_none() {
            return Ok(());
        }
        let found = match artifact.kind {
            ArtifactKind::Table => self.read_parquet(artifact, Some(ordered), place),
            ArtifactKind::Files => {
                // Before the copy: a pipe, for one, would never end.
                scan(place)?;
                let copy = self.layout.scratch();
                let taken = copy_tree(place, &copy)
                    .map_err(CacheError::from)
                    .and_then(|()| self.adopt_files(&copy, Some(&artifact.digest)));
                if taken.is_err() {
                    let _ = remove(&copy);
                }
                taken
            }
        };
        match found {
            Ok(_) => Ok(()),
            Err(CacheError::OtherContent { wanted, found, .. }) => Err(CacheError::OtherContent {
                path: place.to_path_buf(),
                wanted,
                found,
            }),
            Err(error) => Err(error),
        }
    }

    /// Takes a table from a Parquet file that says itself whether its order counts.
    pub(super) fn import_table(&self, artifact: &Artifact, file: &Path) -> Result<(), CacheError> {
        self.read_parquet(artifact, None, file).map(|_| ())
    }

    fn write_parquet(&self, artifact: &Artifact, file: &Path) -> Result<(), CacheError> {
        let columns = self.columns(&artifact.digest)?;
        let mut select = Vec::new();
        for (name, kind) in &columns {
            let carried = Carried::parse(kind).ok_or_else(|| {
                CacheError::Query(format!(
                    "the column `{name}` has the type {kind}, which cannot leave the cache; cast it"
                ))
            })?;
            let name = sql::quote(name);
            select.push(if carried.kind == carried.carrier {
                name
            } else {
                format!("cast({name} as {}) as {name}", carried.carrier)
            });
        }
        let described = Described {
            ordered: self.is_ordered(&artifact.digest),
            columns,
        };
        let described = serde_json::to_string(&described).map_err(std::io::Error::from)?;
        // Rows keep their order: DuckDB preserves it unless told otherwise.
        let copy = format!(
            "copy (select {} from {}) to {} (format parquet, compression zstd, kv_metadata {{{KEY}: {}}})",
            select.join(", "),
            sql::quote(&sql::table_name(&artifact.digest)),
            sql::literal(&file.to_string_lossy()),
            sql::literal(&described),
        );
        self.database.connection()?.execute_batch(&copy)?;
        // On the disk before anybody is told that it is there.
        Ok(fs::File::open(file)?.sync_all()?)
    }

    fn read_parquet(
        &self,
        artifact: &Artifact,
        ordered: Option<bool>,
        place: &Path,
    ) -> Result<Artifact, CacheError> {
        // Of the file, unless the machine is short of something.
        let failed = |error: duckdb::Error| {
            let message = error.to_string();
            match CacheError::from(error) {
                error @ (CacheError::DiskFull { .. } | CacheError::OutOfMemory(_)) => error,
                _ => unreadable(place, &message),
            }
        };
        // Told apart from what DuckDB says, which names patterns.
        fs::File::open(place)?;
        let file = sql::file_literal(place);
        let connection = self.database.connection()?;
        let described = described(&connection, &file)
            .map_err(failed)?
            .and_then(|text| serde_json::from_str::<Described>(&text).ok())
            .ok_or_else(|| unreadable(place, "it does not say what table it holds"))?;
        let mut select = Vec::new();
        for (name, kind) in &described.columns {
            let carried = Carried::parse(kind).ok_or_else(|| {
                unreadable(
                    place,
                    &format!("`{kind}` of the column `{name}` is no type"),
                )
            })?;
            let name = sql::quote(name);
            select.push(format!("cast({name} as {}) as {name}", carried.kind));
        }
        // A path with `=` in it would otherwise give further columns.
        let query = format!(
            "select {} from read_parquet({file}, hive_partitioning = false)",
            select.join(", ")
        );
        let (wanted, ordered) = (Some(&artifact.digest), ordered.unwrap_or(described.ordered));
        self.keep_query(&connection, &query, &[], ordered, wanted, failed)
    }
}

fn unreadable(place: &Path, message: &str) -> CacheError {
    CacheError::Unreadable {
        path: place.to_path_buf(),
        message: first_line(message),
    }
}

/// What a Parquet file says of its table; `None` where another program wrote it.
fn described(connection: &Connection, file: &str) -> duckdb::Result<Option<String>> {
    let sql = format!(
        "select decode(value) from parquet_kv_metadata({file}) where decode(key) = '{KEY}'"
    );
    let mut statement = connection.prepare(&sql)?;
    let mut rows = statement.query([])?;
    rows.next()?.map(|row| row.get(0)).transpose()
}

/// A name of this process alone in the same folder.
fn beside(place: &Path) -> std::io::Result<PathBuf> {
    let name = place
        .file_name()
        .ok_or_else(|| std::io::Error::other(format!("`{}` has no name", place.display())))?;
    let name = format!(".{}.{}.part", name.to_string_lossy(), std::process::id());
    let new = place.with_file_name(name);
    remove(&new)?;
    Ok(new)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::cache::{Holder, RunLock};

    /// A cache in a folder whose name DuckDB could take for a pattern or a partition.
    fn cache(folder: &Path) -> Cache {
        let folder = folder.join("a=[b]*'");
        let lock = RunLock::acquire(&folder, &Holder::new("test"), |_| false).unwrap();
        Cache::open(&folder, lock).unwrap()
    }

    fn table(cache: &Cache, query: &str) -> Artifact {
        cache.store_query(&BTreeMap::new(), query, &[]).unwrap()
    }

    /// Every type that a query can give, by a query of two values.
    const TYPES: [&str; 47] = [
        "unnest([true, false])",
        "unnest([(-128)::tinyint, 127::tinyint])",
        "unnest([(-32768)::smallint, 32767::smallint])",
        "unnest([(-2147483648)::integer, 2147483647::integer])",
        "unnest([(-9223372036854775808)::bigint, 9223372036854775807::bigint])",
        "unnest([(-170141183460469231731687303715884105728)::hugeint, 170141183460469231731687303715884105727::hugeint])",
        "unnest([0::utinyint, 255::utinyint])",
        "unnest([0::usmallint, 65535::usmallint])",
        "unnest([0::uinteger, 4294967295::uinteger])",
        "unnest([0::ubigint, 18446744073709551615::ubigint])",
        "unnest([0::uhugeint, 340282366920938463463374607431768211455::uhugeint])",
        "unnest(['-inf'::real, 1.1754944e-38::real, '-0'::real])",
        "unnest(['nan'::double, 4.9e-324::double, 1.7976931348623157e308])",
        "unnest([1.5::decimal(4,2), -99.99])",
        "unnest([1.5::decimal(9,2), -9999999.99])",
        "unnest([1.5::decimal(18,9), -999999999.999999999])",
        "unnest([1.5::decimal(38,19), -9999999999999999999.9999999999999999999])",
        "unnest(['', 'it''s \"q\" \u{e9}\u{1F600} NULL \n \\ '])",
        "unnest(['\\x00\\xFF'::blob, ''::blob])",
        "unnest(['101'::bit, '000000001'::bit])",
        "unnest(['y'::enum('y', 'it''s, ok'), 'it''s, ok'])",
        "unnest([uuid '00000000-0000-0000-0000-000000000000', uuid 'ffffffff-ffff-ffff-ffff-ffffffffffff'])",
        "unnest([date '0044-03-15 (BC)', date 'infinity'])",
        "unnest([time '00:00:00', time '24:00:00'])",
        "unnest([time '12:34:56.123456'])",
        "unnest(['12:34:56.789+02:30'::timetz, '00:00:00-15:59'::timetz])",
        "unnest([timestamp '-infinity', timestamp '1969-12-31 23:59:59.999999'])",
        "unnest(['infinity'::timestamp_s, '1969-12-31 23:59:59'::timestamp_s])",
        "unnest(['infinity'::timestamp_ms, '1969-12-31 23:59:59.999'::timestamp_ms])",
        "unnest(['infinity'::timestamp_ns, '1969-12-31 23:59:59.999999999'::timestamp_ns])",
        "unnest(['infinity'::timestamptz, '2024-02-29 12:00:00+05'::timestamptz])",
        "unnest([interval '14 months -3 days 36 hours 0.000001 seconds', interval '-1 month'])",
        "unnest(['{\"a\": [1, null]}'::json, 'null'::json])",
        "unnest([[1, null, 3], []])",
        "unnest([[170141183460469231731687303715884105727::hugeint, null], null])",
        "unnest([[['a', null], null], []])",
        "unnest([[1, 2, 3]::integer[3], null])",
        "unnest([[interval '1 day', null]::interval[2]])",
        "unnest([{'a': 1, 'b c\"': 'x'}, {'a': null, 'b c\"': null}])",
        "unnest([{'hugeint': 1::hugeint, 'l': [{'e': 'y'::enum('y')}]}, null])",
        "unnest([{'select': 1, 'A': 2, '\u{e9}': 3}])",
        "unnest([map {'a': 1}, map {'b': 2, 'c': null}])",
        "unnest([map {'a': 1::uhugeint}])",
        "unnest([union_value(n := 1)])",
        "unnest(['POINT (1.5 2)'::geometry])",
        "unnest([12345678901234567890123456789012345678901234567890::bignum])",
        "unnest(['12:34:56.123456789'::time_ns])",
    ];

    #[test]
    fn a_table_of_any_type_comes_back_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let (here, there) = (
            cache(&folder.path().join("here")),
            cache(&folder.path().join("there")),
        );
        let place = folder.path().join("k=v [x]'.parquet");
        let mut refused = Vec::new();
        for values in TYPES {
            for query in [
                format!("select {values} as \"v a.l\", 1 as id"),
                format!("select {values} as value order by 1 desc nulls first"),
                format!(
                    "select any_value(value) as value from (select {values} as value) where false"
                ),
                format!("select {values} as value limit 0"),
            ] {
                let kept = here.store_query(&BTreeMap::new(), &query, &[]);
                let sent = kept.and_then(|artifact| {
                    here.export_artifact(&artifact, &place)?;
                    Ok(artifact)
                });
                let artifact = match sent {
                    Ok(artifact) => artifact,
                    Err(CacheError::Query(message)) if message.contains("cast it") => {
                        // The first words; what follows is for those who look for the reason.
                        let kind = message.split(['(', ';']).next().unwrap_or_default();
                        refused.push(format!("{values}: {}", kind.trim()));
                        continue;
                    }
                    Err(error) => panic!("{query}: {error}"),
                };
                let ordered = here.is_ordered(&artifact.digest);
                if let Err(error) = there.import_artifact(&artifact, ordered, &place) {
                    panic!("{query}: {error}");
                }
                assert_eq!(
                    here.columns(&artifact.digest).unwrap(),
                    there.columns(&artifact.digest).unwrap()
                );
            }
        }
        refused.retain(|line| !line.contains("v a.l"));
        refused.dedup();
        insta::assert_snapshot!(refused.join("\n"), @r"
        unnest([map {'a': 1}, map {'b': 2, 'c': null}]): a column has a type that tables cannot keep
        unnest([map {'a': 1::uhugeint}]): a column has a type that tables cannot keep
        unnest([union_value(n := 1)]): the column `value` has the type UNION
        unnest(['POINT (1.5 2)'::geometry]): the column `value` has the type GEOMETRY, which cannot leave the cache
        ");
        assert!(there.verify().unwrap().damaged.is_empty());
    }

    #[test]
    fn order_travels_with_a_table_and_content_decides() {
        let folder = tempfile::tempdir().unwrap();
        let (here, there) = (
            cache(&folder.path().join("here")),
            cache(&folder.path().join("there")),
        );
        let place = folder.path().join("table.parquet");
        let sorted = "select hash(range) as h, range as n from range(300000) order by h";
        let (ordered, bag) = (
            table(&here, sorted),
            table(&here, &format!("from ({sorted})")),
        );
        assert_ne!(ordered.digest, bag.digest);
        here.export_artifact(&ordered, &place).unwrap();
        let told = |error: CacheError| {
            let text = error.to_string();
            text.replace(&folder.path().display().to_string(), "")
        };
        let refused = there.import_artifact(&ordered, false, &place).unwrap_err();
        insta::assert_snapshot!(told(refused), @"`/table.parquet` does not hold `09059062cee0`: its content is `418ec5391720`");
        let refused = there.import_artifact(&bag, true, &place).unwrap_err();
        assert!(
            matches!(refused, CacheError::OtherContent { .. }),
            "{refused}"
        );
        assert_eq!(there.size().unwrap().tables, 0);
        there.import_artifact(&ordered, true, &place).unwrap();
        there.import_artifact(&bag, false, &place).unwrap();
        assert!(there.is_ordered(&ordered.digest) && !there.is_ordered(&bag.digest));
        // What is there is not read again.
        std::fs::remove_file(&place).unwrap();
        there.import_artifact(&ordered, true, &place).unwrap();
    }

    #[test]
    fn what_is_not_a_table_of_flow_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let cache = cache(folder.path());
        let place = folder.path().join("x.parquet");
        let artifact = table(&cache, "select 1 as n");
        let other = Artifact {
            digest: crate::digest::Digest::of("other"),
            ..artifact.clone()
        };
        let refused = || {
            let error = cache.import_artifact(&other, false, &place).unwrap_err();
            error
                .to_string()
                .replace(&folder.path().display().to_string(), "")
        };
        insta::assert_snapshot!(refused(), @"failed to open file `/x.parquet`: No such file or directory (os error 2)");
        std::fs::write(&place, "not Parquet at all").unwrap();
        insta::assert_snapshot!(refused(), @"`/x.parquet` cannot be read: Invalid Input Error: No magic bytes found at end of file '/x.parquet'");
        cache.export_artifact(&artifact, &place).unwrap();
        insta::assert_snapshot!(refused(), @"`/x.parquet` does not hold `3f796163ebf9`: its content is `3406adbae7f6`");
        let bytes = std::fs::read(&place).unwrap();
        std::fs::write(&place, &bytes[..bytes.len() - 20]).unwrap();
        insta::assert_snapshot!(refused(), @"`/x.parquet` cannot be read: Invalid Input Error: No magic bytes found at end of file '/x.parquet'");
        let connection = Connection::open_in_memory().unwrap();
        let write = |metadata: &str| {
            let sql = format!(
                "copy (select 1 as n) to {} (format parquet{metadata})",
                sql::literal(&place.to_string_lossy())
            );
            connection.execute_batch(&sql).unwrap();
        };
        write("");
        insta::assert_snapshot!(refused(), @"`/x.parquet` cannot be read: it does not say what table it holds");
        let described =
            r#"{"ordered": false, "columns": [["n", "INTEGER) as n; drop table entries --"]]}"#;
        write(&format!(
            ", kv_metadata {{flow: {}}}",
            sql::literal(described)
        ));
        insta::assert_snapshot!(refused(), @"`/x.parquet` cannot be read: `INTEGER) as n; drop table entries --` of the column `n` is no type");
        let gone = cache.export_artifact(&other, &place).unwrap_err();
        insta::assert_snapshot!(gone, @"`t_3f796163ebf94718de1cd7582655c012f995c06f1e6970ea2bdc15bcd88a324a` is gone");
    }

    #[test]
    fn files_come_back_as_they_were() {
        let folder = tempfile::tempdir().unwrap();
        let (here, there) = (
            cache(&folder.path().join("here")),
            cache(&folder.path().join("there")),
        );
        let (made, place) = (folder.path().join("made"), folder.path().join("place"));
        std::fs::create_dir_all(made.join("sub/empty")).unwrap();
        std::fs::write(made.join("sub/run.sh"), "#!/bin/sh\n").unwrap();
        let executable = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(made.join("sub/run.sh"), executable).unwrap();
        std::os::unix::fs::symlink("sub/run.sh", made.join("link")).unwrap();
        let artifact = here.store_files(&made).unwrap();
        for _ in 0..2 {
            // What is there is replaced.
            here.export_artifact(&artifact, &place).unwrap();
        }
        let other = Artifact {
            digest: crate::digest::Digest::of("other"),
            ..artifact.clone()
        };
        let refused = there.import_artifact(&other, false, &place).unwrap_err();
        assert!(
            matches!(refused, CacheError::OtherContent { .. }),
            "{refused}"
        );
        there.import_artifact(&artifact, false, &place).unwrap();
        assert!(place.exists(), "it is left as it is");
        assert!(there.verify().unwrap().damaged.is_empty());
        assert_eq!(there.size().unwrap().objects, 1);
        let kept = there.object_path(&artifact.digest);
        assert!(kept.join("sub/empty").is_dir() && kept.join("link").is_symlink());
        std::os::unix::fs::symlink("/etc", place.join("out")).unwrap();
        let refused = there.import_artifact(&other, false, &place).unwrap_err();
        assert!(matches!(refused, CacheError::Files { .. }), "{refused}");
        std::fs::remove_dir_all(kept).unwrap();
        assert!(there.export_artifact(&artifact, &place).is_err());
        let left = std::fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(left, 3, "no part of an export is left");
    }
}
