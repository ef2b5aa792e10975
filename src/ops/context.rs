//! What an op call sees while it runs: its params, its inputs, where its outputs go, and whom to tell.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use duckdb::Connection;
use serde::de::DeserializeOwned;

use super::{OpError, Part, Parts, Table};
use crate::cache::{Artifact, Cache};
use crate::digest::Digest;
use crate::engine::{CancelToken, Event, EventKind, Level, Progress, Sink};
use crate::graph::{Fingerprint, Node};

/// The artifacts an op gives, by output name, and the final numbers it reports.
#[derive(Debug, Default)]
pub struct Outputs {
    pub artifacts: BTreeMap<String, Artifact>,
    pub metrics: BTreeMap<String, f64>,
}

pub struct Context<'run> {
    pub node: &'run Node,
    pub fingerprint: Fingerprint,
    /// Input artifacts by port; an optional port that is not wired is absent.
    pub inputs: BTreeMap<String, Artifact>,
    /// The local place and the digest of each model param, by dotted param name (resolved before the run); the place of
    /// an endpoint is empty.
    pub models: BTreeMap<String, (PathBuf, Digest)>,
    /// The local place of each path param, by dotted param name.
    pub paths: BTreeMap<String, PathBuf>,
    /// `cache/partial/<fingerprint>/`: kept when the process dies, removed once the node is committed.
    pub scratch: PathBuf,
    /// The project folder; path params are relative to it.
    pub root: PathBuf,
    /// `FLOW_HOME`: downloads and models shared by all projects.
    pub home: PathBuf,
    pub offline: bool,
    /// The GPUs this node may use.
    pub gpus: Vec<u32>,
    pub cancel: CancelToken,
    pub(crate) cache: &'run Cache,
    pub(crate) sink: &'run dyn Sink,
    /// Given where this process does a part of the call's work, and nothing else.
    pub part: Option<Part>,
    /// Given where other processes do the work of an op that can be cut into parts.
    pub parts: Option<Arc<dyn Parts>>,
    /// Metrics and artifacts gathered so far.
    pub(crate) outputs: Outputs,
}

impl Context<'_> {
    /// All params as the op's own struct.
    pub fn params<T: DeserializeOwned>(&self) -> Result<T, OpError> {
        let params = serde_json::Value::Object(self.node.params.clone());
        serde_path_to_error::deserialize(params)
            .map_err(|error| OpError::new(format!("params of `{}`: {error}", self.node.name)))
    }

    /// The text of a file param; `None` where an optional one is not given.
    pub fn file(&self, param: &str) -> Option<&str> {
        self.node.files.get(param).map(|file| file.text.as_str())
    }

    /// The file or folder of a model param.
    pub fn model_path(&self, param: &str) -> Result<&Path, OpError> {
        self.model(param).map(|(path, _)| path.as_path())
    }

    /// The digest of a model param's files.
    pub fn model_digest(&self, param: &str) -> Result<Digest, OpError> {
        self.model(param).map(|(_, digest)| *digest)
    }

    fn model(&self, param: &str) -> Result<&(PathBuf, Digest), OpError> {
        self.models
            .get(param)
            .ok_or_else(|| OpError::new(format!("`{}` has no model `{param}`", self.node.name)))
    }

    pub fn cache(&self) -> &Cache {
        self.cache
    }

    /// Runs `work` on a connection of its own in which every table input is a view named as its port.
    pub fn with_inputs<T>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, OpError>,
    ) -> Result<T, OpError> {
        self.cache.with_views(&self.inputs, work)
    }

    /// Reads rows into memory; `sql` sees the inputs as views.
    pub fn query(&self, sql: &str) -> Result<Table, OpError> {
        self.with_inputs(|connection| Table::query(connection, sql))
    }

    /// Gives a table output. Row order does not count unless `ordered`.
    pub fn give_table(
        &mut self,
        output: &str,
        table: &Table,
        ordered: bool,
    ) -> Result<(), OpError> {
        let artifact = self.cache.store_table(table, ordered)?;
        self.outputs.artifacts.insert(output.to_owned(), artifact);
        Ok(())
    }

    /// Gives the result of a query over the inputs as a table output, without taking the rows through memory.
    pub fn give_query(
        &mut self,
        output: &str,
        sql: &str,
        params: &[(String, serde_json::Value)],
    ) -> Result<(), OpError> {
        let artifact = self.cache.store_query(&self.inputs, sql, params)?;
        self.outputs.artifacts.insert(output.to_owned(), artifact);
        Ok(())
    }

    /// Gives everything in `folder` (inside [`Context::scratch`]) as a files output; the folder is moved away.
    pub fn give_files(&mut self, output: &str, folder: &Path) -> Result<(), OpError> {
        let artifact = self.cache.store_files(folder)?;
        self.outputs.artifacts.insert(output.to_owned(), artifact);
        Ok(())
    }

    /// The folder of a files input.
    pub fn input_files(&self, port: &str) -> Option<PathBuf> {
        self.inputs
            .get(port)
            .map(|artifact| self.cache.object_path(&artifact.digest))
    }

    pub fn progress(&self, done: u64, total: u64, unit: &str, note: impl Into<String>) {
        let progress = Progress {
            done,
            total,
            unit: unit.to_owned(),
            note: note.into(),
        };
        self.emit(EventKind::Progress {
            node: self.node.name.clone(),
            progress,
        });
    }

    /// A point on a curve.
    pub fn metric(&self, step: u64, values: &[(&str, f64)]) {
        let values = values
            .iter()
            .map(|(name, value)| ((*name).to_owned(), *value))
            .collect();
        self.emit(EventKind::Metric {
            node: self.node.name.clone(),
            step,
            values,
        });
    }

    /// A final number of this node, shown in the run record.
    pub fn report(&mut self, name: &str, value: f64) {
        self.outputs.metrics.insert(name.to_owned(), value);
    }

    pub fn info(&self, message: impl Into<String>) {
        self.log(Level::Info, message);
    }

    pub fn warn(&self, message: impl Into<String>) {
        self.log(Level::Warn, message);
    }

    pub fn log(&self, level: Level, message: impl Into<String>) {
        self.emit(EventKind::Log {
            node: Some(self.node.name.clone()),
            level,
            message: message.into(),
        });
    }

    /// To be called between units of work; an interrupted op returns the error at once, its progress saved.
    pub fn check_cancelled(&self) -> Result<(), OpError> {
        if self.cancel.is_cancelled() {
            Err(OpError::Cancelled)
        } else {
            Ok(())
        }
    }

    /// Ends the op.
    pub fn finish(&mut self) -> Result<Outputs, OpError> {
        Ok(std::mem::take(&mut self.outputs))
    }

    fn emit(&self, kind: EventKind) {
        self.sink.event(&Event::now(kind));
    }
}
