//! What a stage or an op takes and gives: typed params, input ports and output ports.
//!
//! The same types describe an op (declared in Rust) and a stage (declared in `stage.yaml`), so both are checked alike.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Column name to DuckDB type name (`VARCHAR`, `BIGINT`, `DOUBLE` …), in table order.
pub type Columns = Vec<(String, String)>;

#[derive(Debug, Clone, Default)]
pub struct Interface {
    pub doc: String,
    pub params: BTreeMap<String, Param>,
    pub inputs: BTreeMap<String, Port>,
    pub outputs: BTreeMap<String, Port>,
    /// Any further input name is accepted (`sql`, `command`).
    pub open_inputs: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Param {
    pub kind: ParamKind,
    /// `None` makes the param required, unless `optional`.
    pub default: Option<Value>,
    pub optional: bool,
    pub doc: String,
    /// Params that cannot change an output (URLs, batch sizes of inference, device names) stay out of the fingerprint.
    pub in_fingerprint: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub enum ParamKind {
    Bool,
    Integer {
        min: Option<i64>,
        max: Option<i64>,
    },
    Number {
        min: Option<f64>,
        max: Option<f64>,
    },
    Text,
    Choice(Vec<String>),
    /// The name of an entry under `models:`.
    Model,
    /// A text file beside `stage.yaml` (or beside the pipeline for a bare op): SQL, a prompt. Its content is fingerprinted.
    File,
    /// A path to data, relative to the pipeline's project folder. Its content is fingerprinted and re-checked after the run.
    Path,
    List(Box<ParamKind>),
    /// A record with fields of its own, such as `lora: { r: 16, alpha: 32 }`.
    Record(BTreeMap<String, Param>),
    /// A mapping with free keys and values of one kind.
    Map(Box<ParamKind>),
    Any,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ArtifactKind {
    /// Rows in DuckDB.
    Table,
    /// A folder of files in the object store.
    Files,
}

#[derive(Debug, Clone)]
pub struct Port {
    /// `None` accepts both kinds (`command`).
    pub kind: Option<ArtifactKind>,
    pub doc: String,
    pub optional: bool,
    /// Columns that must be there (input) or are promised (output). Types are informative and may be empty.
    pub columns: Columns,
}

impl Port {
    pub fn table(doc: &str, columns: &[(&str, &str)]) -> Self {
        let columns = columns
            .iter()
            .map(|(name, kind)| ((*name).to_owned(), (*kind).to_owned()))
            .collect();
        Self {
            kind: Some(ArtifactKind::Table),
            doc: doc.to_owned(),
            optional: false,
            columns,
        }
    }

    pub fn files(doc: &str) -> Self {
        Self {
            kind: Some(ArtifactKind::Files),
            doc: doc.to_owned(),
            optional: false,
            columns: Vec::new(),
        }
    }

    pub fn optional(mut self) -> Self {
        self.optional = true;
        self
    }
}

impl Param {
    pub fn required(kind: ParamKind, doc: &str) -> Self {
        Self {
            kind,
            default: None,
            optional: false,
            doc: doc.to_owned(),
            in_fingerprint: true,
        }
    }

    pub fn optional(kind: ParamKind, doc: &str) -> Self {
        Self {
            optional: true,
            ..Self::required(kind, doc)
        }
    }

    pub fn default(kind: ParamKind, default: impl Into<Value>, doc: &str) -> Self {
        Self {
            default: Some(default.into()),
            ..Self::required(kind, doc)
        }
    }

    /// Takes the param out of the fingerprint.
    pub fn unhashed(mut self) -> Self {
        self.in_fingerprint = false;
        self
    }
}
