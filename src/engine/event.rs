//! What happens in a run. The terminal, the run record and the tracker listen; nothing else passes between them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::cache::Artifact;
use crate::engine::Reason;
use crate::graph::Fingerprint;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Event {
    /// UTC, RFC 3339 with milliseconds.
    pub time: String,
    #[serde(flatten)]
    pub kind: EventKind,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum EventKind {
    RunStarted {
        id: String,
        pipeline: String,
        nodes: usize,
    },
    /// Something is fetched from outside before the run (an archive, a model).
    Fetching {
        what: String,
    },
    NodeStarted {
        node: String,
        op: String,
        /// `None` in records of older runs.
        #[serde(default)]
        fingerprint: Option<Fingerprint>,
        reasons: Vec<Reason>,
    },
    Progress {
        node: String,
        progress: Progress,
    },
    /// A metric at a step of a node's own axis (`train/loss` at step 12).
    Metric {
        node: String,
        step: u64,
        values: BTreeMap<String, f64>,
    },
    Log {
        node: Option<String>,
        level: Level,
        message: String,
    },
    NodeFinished {
        node: String,
        op: String,
        status: NodeStatus,
        seconds: f64,
        fingerprint: Option<Fingerprint>,
        outputs: BTreeMap<String, Artifact>,
        /// Final numbers the node reports, such as `f1` or `rows_dropped`.
        metrics: BTreeMap<String, f64>,
        error: Option<String>,
    },
    /// A node that was found in the shared cache runs after all: what it gave cannot be had from there. What was said of
    /// its end no longer holds.
    NodeReopened {
        node: String,
    },
    RunFinished {
        state: RunState,
        seconds: f64,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeStatus {
    Ran,
    Cached,
    Failed,
    Skipped,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RunState {
    Running,
    Finished,
    Failed,
    Interrupted,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Debug,
    Info,
    Warn,
}

/// How far an op is; `total` 0 means unknown.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    pub done: u64,
    pub total: u64,
    /// `rows`, `tokens`, `steps`, `bytes`.
    pub unit: String,
    /// A short addition such as `loss 1.932`.
    pub note: String,
}

/// A listener. Called from several threads; must be quick and must not fail the run.
pub trait Sink: Send + Sync {
    fn event(&self, event: &Event);
}

impl Event {
    pub fn now(kind: EventKind) -> Self {
        let time = jiff::Timestamp::now()
            .strftime("%Y-%m-%dT%H:%M:%S.%3fZ")
            .to_string();
        Self { time, kind }
    }
}

/// Several listeners as one.
#[derive(Default)]
pub struct Sinks(pub Vec<Box<dyn Sink>>);

impl Sink for Sinks {
    fn event(&self, event: &Event) {
        for sink in &self.0 {
            sink.event(event);
        }
    }
}
