//! A run as `flow show` tells it: its head, and its nodes as the events left them.

use std::io::{BufRead, BufReader};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Head;
use crate::cache::Artifact;
use crate::config::ArtifactKind;
use crate::digest::Digest;
use crate::engine::{Event, EventKind, NodeStatus, Reason};
use crate::graph::Fingerprint;

/// The schema of `flow show --json`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunView {
    #[serde(flatten)]
    pub head: Head,
    /// In the order in which they ended.
    pub nodes: Vec<NodeView>,
    /// Nodes that have started and not ended: of a run that is on, or that died.
    pub unfinished: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NodeView {
    pub name: String,
    pub op: String,
    pub status: NodeStatus,
    /// UTC, RFC 3339; `None` where it never did, as a node that was cached.
    pub started: Option<String>,
    pub ended: Option<String>,
    pub seconds: f64,
    pub fingerprint: Option<Fingerprint>,
    pub outputs: Vec<OutputView>,
    pub metrics: std::collections::BTreeMap<String, f64>,
    /// Why it ran; empty where it did not.
    pub reasons: Vec<Reason>,
    pub error: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OutputView {
    pub name: String,
    pub kind: ArtifactKind,
    pub digest: Digest,
    pub rows: Option<u64>,
    pub bytes: u64,
}

impl OutputView {
    /// What the cache knows it as.
    pub fn artifact(&self) -> Artifact {
        Artifact {
            kind: self.kind,
            digest: self.digest,
            rows: self.rows,
            bytes: self.bytes,
        }
    }
}

impl RunView {
    /// A node by name.
    pub fn node(&self, name: &str) -> Option<&NodeView> {
        self.nodes.iter().find(|node| node.name == name)
    }
}

/// Reads the record of a run. The last line may be half written, by a run that is on or died; it is left out.
pub fn show(folder: &Path) -> std::io::Result<RunView> {
    let head = Head::read(folder)?;
    let mut nodes = Vec::new();
    let mut started: Vec<(String, String, Vec<Reason>)> = Vec::new();
    let lines = match fs_err::File::open(folder.join("events.jsonl")) {
        Ok(file) => BufReader::new(file),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(RunView {
                head,
                nodes,
                unfinished: Vec::new(),
            });
        }
        Err(error) => return Err(error),
    };
    for line in lines.split(b'\n') {
        let Ok(event) = serde_json::from_slice::<Event>(&line?) else {
            continue;
        };
        match event.kind {
            EventKind::NodeReopened { node } => nodes.retain(|known: &NodeView| known.name != node),
            EventKind::NodeStarted { node, reasons, .. } => {
                // One that had to wait for what it reads starts twice.
                started.retain(|(name, ..)| *name != node);
                started.push((node, event.time, reasons));
            }
            EventKind::NodeFinished {
                node,
                op,
                status,
                seconds,
                fingerprint,
                outputs,
                metrics,
                error,
            } => {
                let position = started.iter().position(|(name, ..)| *name == node);
                let (began, reasons) = match position.map(|position| started.swap_remove(position))
                {
                    Some((_, began, reasons)) => (Some(began), reasons),
                    None => (None, Vec::new()),
                };
                let output = |(name, artifact): (String, Artifact)| OutputView {
                    name,
                    kind: artifact.kind,
                    digest: artifact.digest,
                    rows: artifact.rows,
                    bytes: artifact.bytes,
                };
                let outputs = outputs.into_iter().map(output).collect();
                nodes.push(NodeView {
                    name: node,
                    op,
                    status,
                    ended: began.is_some().then_some(event.time),
                    started: began,
                    seconds,
                    fingerprint,
                    outputs,
                    metrics,
                    reasons,
                    error,
                });
            }
            _ => {}
        }
    }
    let unfinished = started.into_iter().map(|(name, ..)| name).collect();
    Ok(RunView {
        head,
        nodes,
        unfinished,
    })
}
