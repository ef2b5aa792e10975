//! The index in memory: loaded once, by one query a table or from the snapshot, and kept in step with what is committed.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use duckdb::Connection;
use serde::{Deserialize, Serialize};

use super::objects::FileRecord;
use super::{Artifact, CacheError, sql};
use crate::config::ArtifactKind;
use crate::digest::Digest;
use crate::graph::Fingerprint;

/// A finished node: what it gave, under the fingerprint of everything that went in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    pub fingerprint: Fingerprint,
    /// The pipeline and node that ran it first; another with the same fingerprint shares the result.
    pub pipeline: String,
    pub node: String,
    pub op: String,
    pub outputs: BTreeMap<String, Artifact>,
    pub metrics: BTreeMap<String, f64>,
    pub seconds: f64,
    /// UTC, RFC 3339.
    pub created: String,
}

/// What the cache knows of an artifact beyond its digest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) artifact: Artifact,
    pub(super) ordered: bool,
    /// Files as they were when stored; empty for a table.
    pub(super) files: Vec<FileRecord>,
}

#[derive(Debug, Default)]
pub(super) struct Index {
    entries: HashMap<Fingerprint, Arc<Entry>>,
    records: HashMap<Digest, Arc<Record>>,
    /// Pipeline, then node, to the fingerprint it had last.
    latest: HashMap<String, HashMap<String, Fingerprint>>,
    /// Records of files whose rows are not in the database yet.
    pub(super) unsaved: HashSet<Digest>,
    pub(super) next: i64,
}

/// The index as it is written to the snapshot.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Contents {
    entries: Vec<Entry>,
    records: Vec<Record>,
    latest: HashMap<String, HashMap<String, Fingerprint>>,
    next: i64,
}

impl Index {
    pub(super) fn entry(&self, fingerprint: &Fingerprint) -> Option<Arc<Entry>> {
        self.entries.get(fingerprint).cloned()
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.entries.values()
    }

    pub(super) fn record(&self, digest: &Digest) -> Option<Arc<Record>> {
        self.records.get(digest).cloned()
    }

    pub(super) fn records(&self) -> impl Iterator<Item = &Arc<Record>> {
        self.records.values()
    }

    pub(super) fn add_entry(&mut self, entry: Arc<Entry>) {
        self.entries.insert(entry.fingerprint, entry);
    }

    pub(super) fn add_record(&mut self, record: Record) -> Arc<Record> {
        let record = Arc::new(record);
        self.records.insert(record.artifact.digest, record.clone());
        record
    }

    pub(super) fn remove_entry(&mut self, fingerprint: &Fingerprint) {
        self.entries.remove(fingerprint);
    }

    pub(super) fn remove_record(&mut self, digest: &Digest) {
        self.records.remove(digest);
    }

    pub(super) fn latest(&self, pipeline: &str, node: &str) -> Option<Fingerprint> {
        self.latest.get(pipeline)?.get(node).copied()
    }

    /// Notes the fingerprint a node has now; says whether that is news.
    pub(super) fn set_latest(
        &mut self,
        pipeline: &str,
        node: &str,
        fingerprint: Fingerprint,
    ) -> bool {
        let nodes = self.latest.entry(pipeline.to_owned()).or_default();
        nodes.insert(node.to_owned(), fingerprint) != Some(fingerprint)
    }

    pub(super) fn contents(&self) -> Contents {
        let entries = self
            .entries
            .values()
            .map(|entry| (**entry).clone())
            .collect();
        let records = self
            .records
            .values()
            .map(|record| (**record).clone())
            .collect();
        Contents {
            entries,
            records,
            latest: self.latest.clone(),
            next: self.next,
        }
    }

    pub(super) fn from_contents(contents: Contents) -> Self {
        let entries = contents
            .entries
            .into_iter()
            .map(|entry| (entry.fingerprint, Arc::new(entry)))
            .collect();
        let records = contents
            .records
            .into_iter()
            .map(|record| (record.artifact.digest, Arc::new(record)))
            .collect();
        Self {
            entries,
            records,
            latest: contents.latest,
            next: contents.next,
            ..Self::default()
        }
    }

    /// Reads everything; a table artifact whose table is gone is left out.
    pub(super) fn load(connection: &Connection) -> Result<Self, CacheError> {
        let mut index = Self::default();
        let mut tables = HashSet::new();
        let mut statement = connection.prepare("select table_name from duckdb_tables()")?;
        for name in statement.query_map([], |row| row.get::<_, String>(0))? {
            tables.insert(name?);
        }
        if !tables.contains("entries") {
            return Ok(index);
        }
        let mut statement = connection
            .prepare("select digest, kind, row_count, bytes, ordered, files from artifacts")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let digest: Digest = parse("artifacts.digest", row.get_ref(0)?.as_str())?;
            let kind = if row.get_ref(1)?.as_str() == Ok("table") {
                ArtifactKind::Table
            } else {
                ArtifactKind::Files
            };
            if kind == ArtifactKind::Table && !tables.contains(&sql::table_name(&digest)) {
                continue;
            }
            let artifact = Artifact {
                kind,
                digest,
                rows: row.get(2)?,
                bytes: row.get(3)?,
            };
            let files = json("artifacts.files", row.get_ref(5)?.as_str())?;
            index.add_record(Record {
                artifact,
                ordered: row.get(4)?,
                files,
            });
        }
        let sql = "select fingerprint, pipeline, node, op, outputs, metrics, seconds, created, seq from entries order by seq";
        let mut statement = connection.prepare(sql)?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let entry = Entry {
                fingerprint: Fingerprint(parse("entries.fingerprint", row.get_ref(0)?.as_str())?),
                pipeline: row.get(1)?,
                node: row.get(2)?,
                op: row.get(3)?,
                outputs: json("entries.outputs", row.get_ref(4)?.as_str())?,
                metrics: json("entries.metrics", row.get_ref(5)?.as_str())?,
                seconds: row.get(6)?,
                created: row.get(7)?,
            };
            index.next = row.get::<_, i64>(8)? + 1;
            index.add_entry(Arc::new(entry));
        }
        // A commit says what a node has now just as a hit that was noted does; the later word counts.
        let sql = "select pipeline, node, fingerprint, seq from latest union all select pipeline, node, fingerprint, seq from entries order by seq";
        let mut statement = connection.prepare(sql)?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let (pipeline, node): (String, String) = (row.get(0)?, row.get(1)?);
            let fingerprint = Fingerprint(parse("latest.fingerprint", row.get_ref(2)?.as_str())?);
            index.next = index.next.max(row.get::<_, i64>(3)? + 1);
            index.set_latest(&pipeline, &node, fingerprint);
        }
        Ok(index)
    }
}

fn parse(
    what: &str,
    text: Result<&str, duckdb::types::FromSqlError>,
) -> Result<Digest, CacheError> {
    let text = text.map_err(|error| broken(what, error))?;
    text.parse().map_err(|error| broken(what, error))
}

fn json<T: serde::de::DeserializeOwned>(
    what: &str,
    text: Result<&str, duckdb::types::FromSqlError>,
) -> Result<T, CacheError> {
    let text = text.map_err(|error| broken(what, error))?;
    serde_json::from_str(text).map_err(|error| broken(what, error))
}

fn broken(what: &str, error: impl std::fmt::Display) -> CacheError {
    CacheError::Damaged {
        path: "flow.duckdb".into(),
        message: format!("`{what}`: {error}"),
    }
}
