//! The fingerprint of a node: BLAKE3 over everything that can change what it gives.
//!
//! The manifest, all parts by name, is saved with the result, so that `flow plan` and `flow why` can say which part changed.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::graph::Node;

/// Bumped when the meaning of a fingerprint changes. 1: first layout.
pub const LAYOUT: u32 = 1;

/// The identity of one op call: same fingerprint, same outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fingerprint(pub Digest);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Every part of a fingerprint by name. Paths, URLs, secrets, thread counts and machine facts are not in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    pub layout: u32,
    pub op: String,
    pub op_version: u32,
    /// Dotted param name to its value as compact JSON.
    pub params: BTreeMap<String, String>,
    /// Digests of the SQL and prompt files, by param.
    pub files: BTreeMap<String, Digest>,
    /// Digests of data read from outside the cache, by param.
    pub paths: BTreeMap<String, Digest>,
    /// Digests of model files (or name and URL-free identity of an endpoint), by param.
    pub models: BTreeMap<String, Digest>,
    /// Digests of the input artifacts, by port.
    pub inputs: BTreeMap<String, Digest>,
    pub seed: u64,
}

/// One difference between two manifests: `with.threshold: 0.3 → 0.5`, named as the pipeline writes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartChange {
    pub part: String,
    pub old: Option<String>,
    pub new: Option<String>,
}

impl Manifest {
    /// Gathers the parts of `node`, given the digests of what it reads.
    pub fn new(
        node: &Node,
        inputs: BTreeMap<String, Digest>,
        paths: BTreeMap<String, Digest>,
        models: BTreeMap<String, Digest>,
    ) -> Self {
        let mut params = BTreeMap::new();
        for (name, value) in &node.params {
            flatten(name, value, &mut params);
        }
        let shadowed = |name: &str| {
            let is = |other: &String| name == other || name.starts_with(&format!("{other}."));
            node.unhashed.iter().any(is)
                || node.files.keys().any(is)
                || node.paths.keys().any(is)
                || node.models.keys().any(is)
        };
        params.retain(|name, _| !shadowed(name));
        let files = node
            .files
            .iter()
            .map(|(name, file)| (name.clone(), file.digest))
            .collect();
        let (op, op_version, seed) = (node.op.clone(), node.op_version, node.seed);
        Self {
            layout: LAYOUT,
            op,
            op_version,
            params,
            files,
            paths,
            models,
            inputs,
            seed,
        }
    }

    pub fn fingerprint(&self) -> Fingerprint {
        let mut hasher = blake3::Hasher::new();
        // Only BTreeMaps and scalars inside, so the bytes are canonical.
        serde_json::to_writer(&mut hasher, self).expect("a manifest is plain data");
        Fingerprint(hasher.finalize().into())
    }

    /// All parts as `(name, text)`, in a fixed order.
    pub fn parts(&self) -> BTreeMap<String, String> {
        let mut parts = BTreeMap::from([
            ("layout".to_owned(), self.layout.to_string()),
            ("op".to_owned(), format!("{} v{}", self.op, self.op_version)),
            ("seed".to_owned(), self.seed.to_string()),
        ]);
        parts.extend(
            self.params
                .iter()
                .map(|(name, value)| (format!("with.{name}"), value.clone())),
        );
        let digests = [
            ("files", &self.files),
            ("paths", &self.paths),
            ("models", &self.models),
            ("inputs", &self.inputs),
        ];
        for (group, map) in digests {
            parts.extend(
                map.iter()
                    .map(|(name, digest)| (format!("{group}.{name}"), digest.short())),
            );
        }
        parts
    }

    /// What changed from `old` to `self`, by part name.
    pub fn diff(&self, old: &Manifest) -> Vec<PartChange> {
        let (old, new) = (old.parts(), self.parts());
        let mut names: Vec<_> = old.keys().chain(new.keys()).collect();
        names.sort();
        names.dedup();
        let change = |name: &String| PartChange {
            part: name.clone(),
            old: old.get(name).cloned(),
            new: new.get(name).cloned(),
        };
        names
            .into_iter()
            .map(change)
            .filter(|change| change.old != change.new)
            .collect()
    }
}

fn flatten(name: &str, value: &serde_json::Value, into: &mut BTreeMap<String, String>) {
    match value {
        serde_json::Value::Object(fields) if !fields.is_empty() => {
            for (key, value) in fields {
                flatten(&format!("{name}.{key}"), value, into);
            }
        }
        other => {
            into.insert(name.to_owned(), other.to_string());
        }
    }
}
