//! One op call of a compiled pipeline.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::config::{ArtifactKind, Columns, JobSpec, ModelSpec};
use crate::digest::Digest;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Node {
    /// `dedup.judge`, or the stage's own name for a bare op (`questions`). A node that only some variants of a matrix have says which:
    /// `train@r=8`.
    pub name: String,
    pub stage: String,
    /// The op's name in the catalog.
    pub op: String,
    pub op_version: u32,
    /// Checked against the op's interface, defaults filled in; file, path and model params keep what the user wrote.
    pub params: Map<String, Value>,
    /// Dotted names of params that stay out of the fingerprint.
    pub unhashed: Vec<String>,
    /// Text files named by params of kind `file`, by dotted param name.
    pub files: BTreeMap<String, StageFile>,
    /// Data named by params of kind `path`, by dotted param name (`files.0` for list items).
    pub paths: BTreeMap<String, PathInput>,
    /// Models named by params of kind `model`, by dotted param name.
    pub models: BTreeMap<String, ModelSpec>,
    pub inputs: Vec<Input>,
    pub outputs: Vec<Output>,
    pub seed: u64,
    pub resources: Resources,
    /// What the pipeline asks for where the node becomes a job of a cluster.
    pub job: JobSpec,
}

/// The content of a stage file as it was when the pipeline was compiled.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StageFile {
    pub path: PathBuf,
    pub text: String,
    pub digest: Digest,
}

/// Data outside the cache that a node reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathInput {
    pub path: PathBuf,
    /// Where to get it from when it is not there.
    pub url: Option<String>,
    /// What its content must hash to, where that is given.
    pub digest: Option<Digest>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Input {
    pub port: String,
    /// Name of the node that gives it.
    pub node: String,
    pub output: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Output {
    pub name: String,
    pub kind: ArtifactKind,
    /// `None` where the columns are known only after the run.
    pub columns: Option<Columns>,
}

/// What a node occupies while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// CPU slots; `u32::MAX` means all of them, for a node with a GPU its GPUs' share of them.
    pub cpu: u32,
    /// GPU slots; taken only where there is a GPU.
    pub gpu: u32,
}

impl Default for Resources {
    fn default() -> Self {
        Self { cpu: 1, gpu: 0 }
    }
}

/// A node's name without the variants that have it: `train` of `train@r=8`.
pub fn base_name(name: &str) -> &str {
    // Names of stages and steps have no `@`.
    name.split_once('@').map_or(name, |(base, _)| base)
}

impl Node {
    /// The name without the variants that have it.
    pub fn base(&self) -> &str {
        base_name(&self.name)
    }

    pub fn input(&self, port: &str) -> Option<&Input> {
        self.inputs.iter().find(|input| input.port == port)
    }

    pub fn output(&self, name: &str) -> Option<&Output> {
        self.outputs.iter().find(|output| output.name == name)
    }
}
