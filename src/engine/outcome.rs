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
    /// What passed between this machine and the shared cache, where there is one.
    pub shared: Option<SharedOutcome>,
}

/// What a run took from the shared cache and gave to it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SharedOutcome {
    pub address: String,
    /// Results of the run whose content is there and not here.
    pub elsewhere: usize,
    /// Artifacts that were fetched because something here read them.
    pub fetched: usize,
    pub received_bytes: u64,
    /// Results that were sent.
    pub sent: usize,
    pub sent_bytes: u64,
    /// From the first to the last of them.
    pub seconds: f64,
    /// Results that should have been sent and were not.
    pub unsent: usize,
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
