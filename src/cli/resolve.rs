//! Gets what a pipeline needs from outside, for the engine: models and downloads.

use std::path::{Path, PathBuf};

use crate::cache::Cache;
use crate::config::ModelSpec;
use crate::digest::Digest;
use crate::download;
use crate::engine::{Event, EventKind, Level, Resolve, ResolveError, Sink};
use crate::graph::PathInput;
use crate::models::Resolver;

pub struct Outside<'a> {
    pub root: &'a Path,
    pub home: &'a Path,
    pub offline: bool,
    pub cache: &'a Cache,
    pub sink: &'a dyn Sink,
}

impl Outside<'_> {
    /// Progress of a transfer, shown as that of a node named after what is fetched.
    fn fetching(&self, what: &str, done: u64, total: u64) {
        let progress = crate::engine::Progress {
            done,
            total,
            unit: "bytes".to_owned(),
            note: String::new(),
        };
        self.sink.event(&Event::now(EventKind::Progress {
            node: what.to_owned(),
            progress,
        }));
    }
}

impl Resolve for Outside<'_> {
    fn resolve(&self, model: &ModelSpec) -> Result<(PathBuf, Digest), ResolveError> {
        let resolver = Resolver {
            root: self.root,
            offline: self.offline,
            digest: &|path| self.cache.digest_path(path),
            fetching: &|what, done, total| self.fetching(what, done, total),
        };
        let found = resolver.resolve(model).map_err(|error| ResolveError {
            message: error.message,
            help: error.help,
        })?;
        if let Some(message) = found.note {
            self.sink.event(&Event::now(EventKind::Log {
                node: None,
                level: Level::Warn,
                message,
            }));
        }
        Ok((found.path, found.digest))
    }

    fn fetch(&self, data: &PathInput) -> Result<PathBuf, ResolveError> {
        let Some(url) = &data.url else {
            return Err(ResolveError::new(
                format!("there is no `{}`", data.path.display()),
                "put it there, or give a `url`",
            ));
        };
        let fetching = |what: &str, done: u64, total: u64| self.fetching(what, done, total);
        download::fetch(url, data.digest, self.home, self.offline, &fetching)
            .map_err(|error| ResolveError::new(error.to_string(), error.help()))
    }
}
