//! What the engine asks of the world outside the cache: where a model or a download lies on this machine.

use std::path::PathBuf;

use crate::config::ModelSpec;
use crate::digest::Digest;
use crate::graph::PathInput;

/// Finds models and data, fetching them where they are not here yet.
pub trait Resolve: Sync {
    /// Where the files of a model lie (empty for an endpoint) and the digest of what they hold.
    fn resolve(&self, model: &ModelSpec) -> Result<(PathBuf, Digest), ResolveError>;

    /// Where the data of a path param lies. Called for data that is not at its path and has a URL.
    fn fetch(&self, data: &PathInput) -> Result<PathBuf, ResolveError>;
}

#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct ResolveError {
    pub message: String,
    pub help: Option<String>,
}

impl ResolveError {
    pub fn new(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            help: Some(help.into()),
        }
    }
}
