//! `run.json`: what a list of runs shows. `flow schema run` prints its JSON Schema.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Environment;
use crate::config::ModelSpec;
use crate::engine::RunState;

/// The head of a run's record, `runs/<id>/run.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Head {
    /// The name of the run's folder; ids sort by the time of the start.
    pub id: String,
    /// The pipeline's name.
    pub pipeline: String,
    /// The profile that was laid over the pipeline.
    pub profile: Option<String>,
    /// A run whose process is gone without an end still says `running` here; commands show it as interrupted.
    pub state: RunState,
    /// UTC, RFC 3339.
    pub started: String,
    /// How long it took; null where the run is still on, or died.
    pub seconds: Option<f64>,
    /// The pipeline file, as typed.
    pub path: String,
    /// The arguments of the command, as typed.
    pub arguments: Vec<String>,
    /// The folder of the cache that holds what the nodes gave.
    pub cache: PathBuf,
    /// The outputs stages declare (`split.train`) and the node outputs behind them (`split.draw.train`).
    pub exports: BTreeMap<String, String>,
    /// The models that nodes use, by `node.param`; paths are absolute.
    #[serde(default)]
    pub models: BTreeMap<String, ModelSpec>,
    /// The pipeline's seed, from which all others come.
    pub seed: u64,
    /// Of flow.
    pub version: String,
    /// How many nodes ran, were cached, failed, were skipped.
    pub counts: BTreeMap<String, usize>,
    /// Final numbers of all nodes, by `node.name`.
    pub metrics: BTreeMap<String, f64>,
    /// What went wrong first.
    pub error: Option<String>,
    /// Which variant of a matrix it is; null for a run by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<VariantOf>,
    /// The machine.
    #[serde(default)]
    pub environment: Environment,
}

/// A run's place in a matrix.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct VariantOf {
    /// The id of the whole: the runs of all variants name the same.
    pub group: String,
    /// `r=8,learning_rate=0.0005`.
    pub label: String,
    /// The values that make the variant, by key, in the order of the matrix.
    pub params: Vec<(String, serde_json::Value)>,
    /// How many nodes it has, and how many that no other variant has.
    pub nodes: usize,
    pub own_nodes: usize,
}

/// The JSON Schema of `run.json`.
pub fn head_schema() -> serde_json::Value {
    schemars::schema_for!(Head).to_value()
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
