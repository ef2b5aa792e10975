//! What a node gives: a table or a folder of files, known by the digest of its content.

use serde::{Deserialize, Serialize};

use crate::config::ArtifactKind;
use crate::digest::Digest;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artifact {
    pub kind: ArtifactKind,
    pub digest: Digest,
    /// Rows of a table; `None` for files.
    pub rows: Option<u64>,
    /// Size in bytes: of the files, or of the table's values (an estimate).
    pub bytes: u64,
}
