//! How a run ended.

use std::collections::BTreeMap;

use super::{EventKind, NodeStatus, RunState};
use crate::cache::Artifact;
use crate::graph::Fingerprint;
use crate::ops::OpError;

#[derive(Debug)]
pub struct RunOutcome {
    pub state: RunState,
    pub seconds: f64,
    /// In the order in which they ended.
    pub nodes: Vec<NodeOutcome>,
    /// The first thing that went wrong; what failed after it is in `nodes`.
    pub headline: Option<Failure>,
}

#[derive(Debug, Clone)]
pub struct NodeOutcome {
    pub name: String,
    pub op: String,
    pub status: NodeStatus,
    pub seconds: f64,
    pub fingerprint: Option<Fingerprint>,
    pub outputs: BTreeMap<String, Artifact>,
    pub metrics: BTreeMap<String, f64>,
    pub error: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// `None` where it is not about one node (the last commit failed).
    pub node: Option<String>,
    pub message: String,
    pub help: Option<String>,
}

impl Failure {
    pub(super) fn of(node: &str, error: &OpError) -> Self {
        Self {
            node: Some(node.to_owned()),
            message: error.to_string(),
            help: error.help(),
        }
    }
}

impl NodeOutcome {
    pub(super) fn event(&self) -> EventKind {
        let Self {
            name,
            op,
            status,
            seconds,
            fingerprint,
            outputs,
            metrics,
            error,
        } = self.clone();
        EventKind::NodeFinished {
            node: name,
            op,
            status,
            seconds,
            fingerprint,
            outputs,
            metrics,
            error,
        }
    }
}
