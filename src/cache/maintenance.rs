//! Looking after a cache: how big it is, dropping what nothing needs, checking everything by content.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::time::{Duration, SystemTime};

use duckdb::Connection;
use fs_err as fs;
use serde::Serialize;

use super::layout::remove;
use super::{Cache, CacheError, committer, ledger, objects, sql, tables};
use crate::config::ArtifactKind;
use crate::digest::Digest;
use crate::graph::Fingerprint;

/// Scratch of unfinished nodes is kept this long by `gc`, so that an interrupted training can go on next week.
const SCRATCH_LIFE: Duration = Duration::from_secs(7 * 24 * 3600);

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Size {
    pub entries: usize,
    pub tables: usize,
    pub objects: usize,
    pub verdicts: u64,
    /// Bytes of the database file, with tables, index and verdicts.
    pub database_bytes: u64,
    pub object_bytes: u64,
    /// Bytes of unfinished nodes' progress.
    pub partial_bytes: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Collected {
    /// Runs whose results all stayed.
    pub kept_runs: usize,
    /// What the artifacts that stayed hold, in bytes.
    pub kept_bytes: u64,
    pub entries: usize,
    pub tables: usize,
    pub objects: usize,
    /// What the cache folder shrank by.
    pub bytes: u64,
}

/// What `gc` leaves.
#[derive(Debug, Default)]
struct Cut {
    runs: usize,
    entries: HashSet<Fingerprint>,
    live: HashSet<Digest>,
    bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Damage {
    pub digest: Digest,
    pub kind: ArtifactKind,
    /// Nodes whose result it was; they run again.
    pub nodes: Vec<String>,
    pub problem: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Verified {
    pub artifacts: usize,
    pub damaged: Vec<Damage>,
}

impl Cache {
    pub fn size(&self) -> Result<Size, CacheError> {
        let index = self.index();
        let count = |kind| {
            index
                .records()
                .filter(|record| record.artifact.kind == kind)
                .count()
        };
        let mut size = Size {
            entries: index.entries().count(),
            tables: count(ArtifactKind::Table),
            objects: count(ArtifactKind::Files),
            object_bytes: bytes_in(&self.layout.objects())?,
            partial_bytes: bytes_in(&self.layout.partials())? + bytes_in(&self.layout.jobs())?,
            ..Size::default()
        };
        drop(index);
        if self.database.path().exists() {
            let connection = self.database.connection()?;
            size.verdicts =
                connection.query_row("select count(*) from verdicts", [], |row| row.get(0))?;
            size.database_bytes = fs::metadata(self.database.path())?.len();
        }
        Ok(size)
    }

    /// Drops every result whose fingerprint is not in `keep`, and files and tables that then nothing names.
    ///
    /// `keep` is a list of runs, the dearest first. With `max_bytes` it is cut off at the run with which the artifacts would
    /// exceed them: a run is kept whole or not at all, and the first always. Verdicts stay: they are small and cost the
    /// most to make.
    pub fn gc(
        &self,
        keep: &[Vec<Fingerprint>],
        max_bytes: Option<u64>,
    ) -> Result<Collected, CacheError> {
        let before = bytes_in(self.folder())?;
        let Cut {
            runs: kept_runs,
            entries,
            live,
            bytes: kept_bytes,
        } = self.cut(keep, max_bytes);
        let dead_entries: Vec<Fingerprint> = self
            .index()
            .entries()
            .map(|entry| entry.fingerprint)
            .filter(|fingerprint| !entries.contains(fingerprint))
            .collect();
        let dead_records: Vec<_> = self
            .index()
            .records()
            .filter(|record| !live.contains(&record.artifact.digest))
            .cloned()
            .collect();
        let mut collected = Collected {
            kept_runs,
            kept_bytes,
            entries: dead_entries.len(),
            ..Collected::default()
        };
        if !dead_entries.is_empty() || !dead_records.is_empty() {
            let connection = self.database.connection()?;
            let dead: Vec<Digest> = dead_records
                .iter()
                .map(|record| record.artifact.digest)
                .collect();
            self.forget(&connection, &dead_entries, &dead)?;
            for record in &dead_records {
                match record.artifact.kind {
                    ArtifactKind::Table => collected.tables += 1,
                    ArtifactKind::Files => collected.objects += 1,
                }
            }
        }
        for folder in fs::read_dir(self.layout.objects())? {
            let folder = folder?;
            let digest = folder
                .file_name()
                .to_str()
                .and_then(|name| name.parse::<Digest>().ok());
            if digest.is_none_or(|digest| !live.contains(&digest)) {
                remove(&folder.path())?;
            }
        }
        for folder in super::store::unfinished(&self.layout)? {
            let age = SystemTime::now()
                .duration_since(newest(&folder.path())?)
                .unwrap_or_default();
            if age > SCRATCH_LIFE {
                remove(&folder.path())?;
            }
        }
        ledger::retain(&self.layout, |fingerprint| entries.contains(fingerprint))?;
        self.compact()?;
        self.flush()?;
        collected.bytes = before.saturating_sub(bytes_in(self.folder())?);
        Ok(collected)
    }

    /// Which runs fit into `max_bytes`, the first of them always, and what they need.
    fn cut(&self, keep: &[Vec<Fingerprint>], max_bytes: Option<u64>) -> Cut {
        let index = self.index();
        let mut cut = Cut::default();
        for run in keep {
            let entries: Vec<_> = run
                .iter()
                .filter_map(|fingerprint| index.entry(fingerprint))
                .collect();
            let new: HashMap<Digest, u64> = entries
                .iter()
                .flat_map(|entry| entry.outputs.values())
                // What is elsewhere takes no room here.
                .filter(|artifact| {
                    !cut.live.contains(&artifact.digest) && index.record(&artifact.digest).is_some()
                })
                .map(|artifact| (artifact.digest, artifact.bytes))
                .collect();
            let total = new
                .values()
                .fold(cut.bytes, |total, more| total.saturating_add(*more));
            if cut.runs > 0 && max_bytes.is_some_and(|max| total > max) {
                break;
            }
            cut.bytes = total;
            cut.live.extend(new.into_keys());
            cut.entries
                .extend(entries.iter().map(|entry| entry.fingerprint));
            cut.runs += 1;
        }
        cut
    }

    /// Takes entries and artifacts out of database and memory in one transaction; files are left to the caller.
    fn forget(
        &self,
        connection: &Connection,
        entries: &[Fingerprint],
        artifacts: &[Digest],
    ) -> Result<(), CacheError> {
        connection.execute_batch("begin")?;
        let work = || -> Result<(), CacheError> {
            for table in ["entries", "latest"] {
                committer::delete(connection, table, "fingerprint", entries)?;
            }
            committer::delete_records(connection, artifacts)?;
            for digest in artifacts {
                committer::drop_table(connection, digest)?;
            }
            Ok(connection.execute_batch("commit")?)
        };
        let done = work();
        if done.is_err() {
            // The first error is the one to report.
            let _ = connection.execute_batch("rollback");
            return done;
        }
        let mut index = self.index();
        for fingerprint in entries {
            index.remove_entry(fingerprint);
        }
        for digest in artifacts {
            index.remove_record(digest);
        }
        Ok(())
    }

    /// Rewrites the database file where half of it is free, as DuckDB gives no space back by itself.
    fn compact(&self) -> Result<(), CacheError> {
        if !self.database.path().exists() {
            return Ok(());
        }
        {
            let connection = self.database.connection()?;
            connection.execute_batch("checkpoint")?;
            let sql = "select free_blocks * 2 > total_blocks from pragma_database_size()";
            if !connection.query_row(sql, [], |row| row.get::<_, bool>(0))? {
                return Ok(());
            }
        }
        self.database.close_if_idle(Duration::ZERO);
        let copy = self.layout.scratch();
        let literal = |path: &Path| sql::literal(&path.to_string_lossy());
        let connection = Connection::open_in_memory()?;
        connection.execute_batch(&format!(
            "attach {} as old (read_only); attach {} as new; copy from database old to new; detach new; detach old",
            literal(self.database.path()),
            literal(&copy),
        ))?;
        drop(connection);
        fs::File::open(&copy)?.sync_all()?;
        fs::rename(&copy, self.database.path())?;
        Ok(())
    }

    /// Hashes every artifact again; what is damaged is dropped, so that its nodes run again.
    pub fn verify(&self) -> Result<Verified, CacheError> {
        let records: Vec<_> = self.index().records().cloned().collect();
        let mut verified = Verified {
            artifacts: records.len(),
            damaged: Vec::new(),
        };
        for record in records {
            let artifact = &record.artifact;
            let found = match artifact.kind {
                ArtifactKind::Table => {
                    let connection = self.database.connection()?;
                    let table = sql::quote(&sql::table_name(&artifact.digest));
                    tables::table_digest(&connection, &table, record.ordered)
                        .map(|(digest, _, _)| digest)
                }
                ArtifactKind::Files => objects::rehash(&self.layout.object(&artifact.digest)),
            };
            let problem = match found {
                Ok(digest) if digest == artifact.digest => continue,
                Ok(_) => "its content has changed since it was stored".to_owned(),
                Err(error) => error.to_string(),
            };
            let uses: Vec<_> = self
                .index()
                .entries()
                .filter(|entry| {
                    entry
                        .outputs
                        .values()
                        .any(|output| output.digest == artifact.digest)
                })
                .cloned()
                .collect();
            let fingerprints: Vec<_> = uses.iter().map(|entry| entry.fingerprint).collect();
            self.forget(
                &*self.database.connection()?,
                &fingerprints,
                &[artifact.digest],
            )?;
            if artifact.kind == ArtifactKind::Files {
                remove(&self.layout.object(&artifact.digest))?;
            }
            let nodes = uses.iter().map(|entry| entry.node.clone()).collect();
            verified.damaged.push(Damage {
                digest: artifact.digest,
                kind: artifact.kind,
                nodes,
                problem,
            });
        }
        self.flush()?;
        Ok(verified)
    }
}

/// Bytes of all files under `path`.
fn bytes_in(path: &Path) -> std::io::Result<u64> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    if !metadata.is_dir() {
        return Ok(metadata.len());
    }
    fs::read_dir(path)?.try_fold(0, |sum, item| Ok(sum + bytes_in(&item?.path())?))
}

/// The last change anywhere under `path`.
fn newest(path: &Path) -> std::io::Result<SystemTime> {
    let metadata = fs::symlink_metadata(path)?;
    let mut newest_time = metadata.modified()?;
    if metadata.is_dir() {
        for item in fs::read_dir(path)? {
            newest_time = newest_time.max(newest(&item?.path())?);
        }
    }
    Ok(newest_time)
}
