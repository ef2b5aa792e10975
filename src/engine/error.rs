//! Why a run could not start. What fails while it runs is part of its outcome instead.

use crate::cache::{CacheError, ExternalError};
use crate::engine::ResolveError;

#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("there is no stage or node `{name}` in the pipeline{}", suggest(.near))]
    UnknownNode { name: String, near: Option<String> },
    #[error("`{node}` is not cached, and `{selected}` needs what it gives")]
    UpstreamNotCached { node: String, selected: String },
    #[error("`{node}` reads data by its param `{param}`: {source}")]
    Data {
        node: String,
        param: String,
        source: ExternalError,
    },
    #[error("`{node}` needs the model of its param `{param}`: {source}")]
    Model {
        node: String,
        param: String,
        source: ResolveError,
    },
    #[error("`{node}` needs data by its param `{param}`: {source}")]
    Fetch {
        node: String,
        param: String,
        source: ResolveError,
    },
    #[error(transparent)]
    Cache(#[from] CacheError),
}

fn suggest(near: &Option<String>) -> String {
    near.as_ref()
        .map(|near| format!("; did you mean `{near}`?"))
        .unwrap_or_default()
}

impl EngineError {
    /// The next step, where there is one to name.
    pub fn help(&self) -> Option<String> {
        match self {
            Self::UnknownNode { .. } => Some("`flow graph` lists stages and nodes".to_owned()),
            Self::UpstreamNotCached { node, selected } => Some(format!(
                "run it first (`--until {node}`), or everything up to `{selected}` (`--until {selected}`)"
            )),
            Self::Data {
                source: ExternalError::Missing(_),
                ..
            } => Some("correct the path, or put the data there".to_owned()),
            Self::Data {
                source: ExternalError::Unsteady(_),
                ..
            } => Some("wait until it is written, then run again".to_owned()),
            Self::Data {
                source: ExternalError::Archive { .. },
                ..
            } => Some("it may be cut off, or be no zip archive at all; get it again".to_owned()),
            Self::Data {
                source: ExternalError::Bomb { .. },
                ..
            } => Some(
                "the archive is not what it seems; check where it comes from, or unpack it by hand and name the folder"
                    .to_owned(),
            ),
            Self::Data { .. } => None,
            Self::Model { source, .. } | Self::Fetch { source, .. } => source.help.clone(),
            Self::Cache(error) => error.help(),
        }
    }
}
