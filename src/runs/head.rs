//! `run.json`: what a list of runs shows.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Environment;
use crate::config::ModelSpec;
use crate::engine::RunState;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Head {
    pub id: String,
    /// The pipeline's name.
    pub pipeline: String,
    pub profile: Option<String>,
    pub state: RunState,
    /// UTC, RFC 3339.
    pub started: String,
    /// `None` where the run is still on, or died.
    pub seconds: Option<f64>,
    /// The pipeline file and the arguments, as typed.
    pub path: String,
    pub arguments: Vec<String>,
    /// The folder of the cache that holds what the nodes gave.
    pub cache: PathBuf,
    /// The outputs stages declare (`split.train`) and the node outputs behind them (`split.draw.train`).
    pub exports: BTreeMap<String, String>,
    /// The models that nodes use, by `node.param`; paths are absolute.
    #[serde(default)]
    pub models: BTreeMap<String, ModelSpec>,
    pub seed: u64,
    /// Of flow.
    pub version: String,
    /// How many nodes ran, were cached, failed, were skipped.
    pub counts: BTreeMap<String, usize>,
    /// Final numbers of all nodes, by `node.name`.
    pub metrics: BTreeMap<String, f64>,
    /// What went wrong first.
    pub error: Option<String>,
    #[serde(default)]
    pub environment: Environment,
}

impl Head {
    /// Reads the head of a run; one whose process is gone without an end is interrupted.
    pub fn read(folder: &Path) -> std::io::Result<Self> {
        let mut head: Self = serde_json::from_slice(&fs_err::read(folder.join("run.json"))?)?;
        if head.state == RunState::Running && !is_alive(folder) {
            head.state = RunState::Interrupted;
        }
        Ok(head)
    }
}

/// Whether the process that records a run lives: it holds a lock on the events until its end.
fn is_alive(folder: &Path) -> bool {
    match File::open(folder.join("events.jsonl")).map(|file| file.try_lock_shared()) {
        Ok(Err(TryLockError::WouldBlock)) => true,
        Ok(Ok(()) | Err(TryLockError::Error(_))) | Err(_) => false,
    }
}

/// A new run id: UTC to the second, then the fraction of the second as four hexadecimal digits. So ids sort by time, and two
/// runs share one only if they start within 15 µs.
pub fn new_id() -> String {
    let now = jiff::Timestamp::now();
    let fraction = now.subsec_nanosecond().unsigned_abs() as u64 * 0x1_0000 / 1_000_000_000;
    format!("{}-{fraction:04x}", now.strftime("%Y%m%d-%H%M%S"))
}
