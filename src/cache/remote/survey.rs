//! The shared cache as a whole: what there is, what of it is missing there or here.

use futures_util::StreamExt as _;
use serde::Serialize;

use super::RemoteError;
use crate::cache::{Artifact, Cache};
use crate::graph::Fingerprint;

/// How much there is in a shared cache, whoever put it there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct SharedSize {
    pub address: String,
    pub entries: u64,
    pub tables: u64,
    pub table_bytes: u64,
    /// Sets of files, and the bytes of their contents, each once.
    pub files: u64,
    pub content_bytes: u64,
}

impl Cache {
    /// Counts the objects of the shared cache by listing them, a thousand a request; `None` where there is none.
    ///
    /// # Errors
    /// It cannot be used.
    pub fn shared_size(&self) -> Result<Option<SharedSize>, RemoteError> {
        let Some(remote) = self.remote() else {
            return Ok(None);
        };
        let mut size = SharedSize {
            address: remote.address().to_owned(),
            ..SharedSize::default()
        };
        remote.list("", |folder, _, bytes| match folder {
            "entries" => size.entries += 1,
            "tables" => {
                size.tables += 1;
                size.table_bytes += bytes;
            }
            "files" => size.files += 1,
            "contents" => size.content_bytes += bytes,
            _ => {}
        })?;
        Ok(Some(size))
    }

    /// Looks anew which results are in the shared cache; gives those that are here and not there.
    ///
    /// # Errors
    /// It cannot be used.
    pub fn unsent(&self) -> Result<Vec<Fingerprint>, RemoteError> {
        let Some(remote) = self.remote() else {
            return Ok(Vec::new());
        };
        let mut there = Vec::new();
        remote.list("entries", |_, name, _| {
            let digest = name
                .strip_suffix(".json")
                .and_then(|name| name.parse().ok());
            there.extend(digest.map(Fingerprint));
        })?;
        {
            let mut state = remote.state();
            state.forget();
            for fingerprint in there {
                state.set_there(fingerprint);
            }
        }
        let entries: Vec<_> = self.index().entries().cloned().collect();
        Ok(entries
            .iter()
            .filter(|entry| self.is_here(entry) && !remote.has(&entry.fingerprint))
            .map(|entry| entry.fingerprint)
            .collect())
    }

    /// What results known here gave that is not here, each artifact once.
    pub fn elsewhere(&self) -> Vec<Artifact> {
        let entries: Vec<_> = self.index().entries().cloned().collect();
        let artifacts = entries.iter().flat_map(|entry| entry.outputs.values());
        let mut missing: Vec<Artifact> = artifacts
            .filter(|artifact| !self.has(artifact))
            .cloned()
            .collect();
        missing.sort_by_key(|artifact| artifact.digest);
        missing.dedup_by_key(|artifact| artifact.digest);
        missing
    }
}

impl super::Remote {
    /// Calls `seen` with folder, name and bytes of every object; of those in `folder` where one is named.
    fn list(&self, folder: &str, mut seen: impl FnMut(&str, &str, u64)) -> Result<(), RemoteError> {
        let client = self.client()?;
        let prefix = match folder {
            "" => client.prefix.clone(),
            folder => client.prefix.clone().join(folder),
        };
        let read = async {
            let mut objects = client.store.list(Some(&prefix));
            while let Some(object) = objects.next().await {
                let object = object?;
                let mut parts = object
                    .location
                    .prefix_match(&client.prefix)
                    .into_iter()
                    .flatten();
                if let (Some(folder), Some(name)) = (parts.next(), parts.next()) {
                    seen(folder.as_ref(), name.as_ref(), object.size);
                }
            }
            Ok::<_, object_store::Error>(())
        };
        client
            .runtime
            .block_on(read)
            .map_err(|error| self.give_up(super::plain(&error.to_string())))
    }
}
