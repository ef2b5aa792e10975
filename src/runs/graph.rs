//! `graph.json`: the nodes of a run as they were compiled, so that a record can be understood when the pipeline and its
//! stages have moved on.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::graph::{Manifest, Node, base_name};

/// The nodes a run is about, each after all it reads.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RunGraph {
    pub nodes: Vec<GraphNode>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GraphNode {
    pub name: String,
    pub stage: String,
    pub op: String,
    /// By port.
    pub inputs: BTreeMap<String, Origin>,
    /// What each model param names, as people know it: a repository, a file name, a name at an endpoint.
    pub models: BTreeMap<String, String>,
    /// The parts of the fingerprint but for the digests of the inputs, which are known when those are.
    pub manifest: Manifest,
}

/// The output that feeds a port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Origin {
    pub node: String,
    pub output: String,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.node, self.output)
    }
}

/// A [`RunGraph`] to be written. Each node is text already, so that variants of a matrix share those of nodes they share.
#[derive(Debug, Clone, Default)]
pub struct GraphText(pub Vec<Arc<str>>);

impl GraphText {
    /// A node with its manifest, by the name it has without a matrix.
    pub fn node(node: &Node, manifest: Manifest) -> Arc<str> {
        let node = GraphNode::new(node, manifest);
        serde_json::to_string(&node)
            .expect("a node is plain data")
            .into()
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let length: usize = self.0.iter().map(|node| node.len() + 1).sum();
        let mut bytes = Vec::with_capacity(length + 16);
        bytes.extend(b"{\"nodes\":[");
        for (place, node) in self.0.iter().enumerate() {
            bytes.extend(if place > 0 { b"," as &[u8] } else { b"" });
            bytes.extend(node.as_bytes());
        }
        bytes.extend(b"]}");
        bytes
    }
}

impl RunGraph {
    /// Reads that of a run; one recorded by a flow that did not keep it is empty.
    pub fn read(folder: &Path) -> std::io::Result<Self> {
        match fs_err::read(folder.join("graph.json")) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes)?),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error),
        }
    }

    pub fn node(&self, name: &str) -> Option<&GraphNode> {
        self.nodes.iter().find(|node| node.name == name)
    }
}

impl GraphNode {
    fn new(node: &Node, manifest: Manifest) -> Self {
        let inputs = node.inputs.iter().map(|input| {
            let origin = Origin {
                node: base_name(&input.node).to_owned(),
                output: input.output.clone(),
            };
            (input.port.clone(), origin)
        });
        let models = node.models.iter().filter_map(|(param, model)| {
            let file = |path: &String| Path::new(path).file_name()?.to_str().map(str::to_owned);
            let name = model
                .hf
                .clone()
                .or_else(|| model.path.as_ref().and_then(file))
                .or_else(|| model.name.clone())?;
            Some((param.clone(), name))
        });
        Self {
            name: node.base().to_owned(),
            stage: node.stage.clone(),
            op: node.op.clone(),
            inputs: inputs.collect(),
            models: models.collect(),
            manifest,
        }
    }

    /// The whole manifest, given the digests of what the node read.
    pub fn manifest_with(&self, inputs: BTreeMap<String, Digest>) -> Manifest {
        Manifest {
            inputs,
            ..self.manifest.clone()
        }
    }

    /// A param as text, without the quotes of JSON; `None` where it is not given.
    pub fn param(&self, name: &str) -> Option<String> {
        let value = self.manifest.params.get(name)?;
        match serde_json::from_str(value) {
            Ok(serde_json::Value::Null) => None,
            Ok(serde_json::Value::String(text)) => Some(text),
            _ => Some(value.clone()),
        }
    }
}
