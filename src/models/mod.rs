//! From a `models:` entry to files on this machine and the digest of what they hold.
//!
//! Called by the engine before a run, and by the commands that use a model alone; loads no weights and names no tensor
//! library. The Hugging Face variables (`HF_HOME`, `HF_ENDPOINT`, `HF_HUB_OFFLINE`, `HF_TOKEN` …) are the hub's own
//! interface and are read here.

mod hub;
mod local;

pub use local::is_part;

use std::path::{Path, PathBuf};

use crate::cache::ExternalError;
use crate::config::ModelSpec;
use crate::digest::Digest;

/// A model that is ready to be loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// A GGUF file or a model folder; empty for an endpoint.
    pub path: PathBuf,
    /// Over the content of the files that matter, wherever they came from; of the name for an endpoint.
    pub digest: Digest,
    /// Something the user should know, such as a hub that could not be asked for news.
    pub note: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ModelError {
    pub message: String,
    pub help: Option<String>,
}

impl ModelError {
    fn new(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            help: Some(help.into()),
        }
    }
}

/// What resolving needs from its caller.
pub struct Resolver<'a> {
    /// Relative paths start here.
    pub root: &'a Path,
    /// No request leaves this machine.
    pub offline: bool,
    /// The digest of a file's content; the caller may remember it by size and time.
    pub digest: &'a dyn Fn(&Path) -> Result<Digest, ExternalError>,
    /// Told what is fetched, with bytes done and in total (0: not known yet).
    pub fetching: &'a dyn Fn(&str, u64, u64),
}

impl Resolver<'_> {
    /// Finds the model's files, fetching them where needed.
    ///
    /// # Errors
    /// One message for a model that is not there, cannot be fetched or lacks a file; `spec` must name exactly one place.
    pub fn resolve(&self, spec: &ModelSpec) -> Result<Resolved, ModelError> {
        match (&spec.path, &spec.hf, &spec.url) {
            (Some(path), None, None) => self.local(&self.root.join(path), None),
            (None, Some(repository), None) => {
                let hub = hub::Hub::from_environment(self.offline);
                let found = hub.fetch(repository, spec.revision.as_deref(), self.fetching)?;
                self.local(&found.path, found.note)
            }
            (None, None, Some(url)) => {
                let help = "give the model's name at the endpoint: `{ url: …, name: … }`";
                let name = spec.name.as_ref().ok_or_else(|| {
                    ModelError::new(format!("the endpoint `{url}` has no `name`"), help)
                })?;
                Ok(Resolved {
                    path: PathBuf::new(),
                    digest: Digest::of(format!("endpoint:{name}")),
                    note: None,
                })
            }
            _ => Err(ModelError::new(
                "a model needs exactly one of `path`, `hf` and `url`",
                "keep one of them",
            )),
        }
    }

    fn local(&self, path: &Path, note: Option<String>) -> Result<Resolved, ModelError> {
        let digest = local::digest(path, self.digest)?;
        Ok(Resolved {
            path: path.to_owned(),
            digest,
            note,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(spec: ModelSpec) -> Result<Resolved, ModelError> {
        let digest = |path: &Path| Ok(Digest::of(std::fs::read(path).unwrap()));
        Resolver {
            root: Path::new("/nowhere"),
            offline: true,
            digest: &digest,
            fetching: &|_, _, _| {},
        }
        .resolve(&spec)
    }

    #[test]
    fn an_endpoint_is_its_name() {
        let at = |url: &str, name: &str| ModelSpec {
            url: Some(url.into()),
            name: Some(name.into()),
            ..ModelSpec::default()
        };
        let digest = |url, name| resolve(at(url, name)).unwrap().digest;
        assert_eq!(digest("http://a/v1", "qwen"), digest("http://b/v1", "qwen"));
        assert_ne!(
            digest("http://a/v1", "qwen"),
            digest("http://a/v1", "llama")
        );
    }

    #[test]
    fn what_is_not_there_is_named() {
        let spec = ModelSpec {
            path: Some("models/base.gguf".into()),
            ..ModelSpec::default()
        };
        let error = resolve(spec).unwrap_err();
        insta::assert_snapshot!(error, @"there is no model at `/nowhere/models/base.gguf`");
        insta::assert_snapshot!(error.help.unwrap(), @"give a GGUF file, a model folder, or `hf: owner/name`");
        let error = resolve(ModelSpec {
            url: Some("http://a/v1".into()),
            ..ModelSpec::default()
        })
        .unwrap_err();
        insta::assert_snapshot!(error, @"the endpoint `http://a/v1` has no `name`");
    }
}
