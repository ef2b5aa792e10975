//! Why a node ran, or did not, in a run.

use std::path::Path;

use serde::Serialize;

use super::{FindError, Head, NodeView, list, show};
use crate::engine::{NodeStatus, Reason};
use crate::graph::Fingerprint;

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Why {
    pub run: String,
    pub node: String,
    pub status: NodeStatus,
    pub fingerprint: Option<Fingerprint>,
    /// Parts of its fingerprint that had changed since it last finished, or what else made it run.
    pub reasons: Vec<Reason>,
    /// The run that made the result, where this one found it in the cache.
    pub made_by: Option<String>,
    pub error: Option<String>,
}

/// Looks a node of a run up. `None` where the run has no such node.
pub fn why(runs: &Path, run: &Path, node: &str) -> Result<Option<Why>, FindError> {
    let view = show(run)?;
    let Some(found) = view.node(node) else {
        return Ok(None);
    };
    let made_by = match (found.status, found.fingerprint) {
        (NodeStatus::Cached, Some(fingerprint)) => maker(runs, &view.head, node, fingerprint)?,
        _ => None,
    };
    let NodeView {
        name,
        status,
        fingerprint,
        reasons,
        error,
        ..
    } = found.clone();
    Ok(Some(Why {
        run: view.head.id,
        node: name,
        status,
        fingerprint,
        reasons,
        made_by,
        error,
    }))
}

/// The latest earlier run in which the node ran with this fingerprint.
fn maker(
    runs: &Path,
    head: &Head,
    node: &str,
    fingerprint: Fingerprint,
) -> Result<Option<String>, FindError> {
    for earlier in list(runs)?
        .into_iter()
        .filter(|earlier| earlier.id < head.id && earlier.pipeline == head.pipeline)
    {
        let view = show(&runs.join(&earlier.id))?;
        if view.node(node).is_some_and(|node| {
            node.status == NodeStatus::Ran && node.fingerprint == Some(fingerprint)
        }) {
            return Ok(Some(earlier.id));
        }
    }
    Ok(None)
}
