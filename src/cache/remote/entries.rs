//! Entries in the shared cache: looked up many at a time, sealed against damage.

use std::borrow::Cow;
use std::sync::Arc;

use futures_util::StreamExt as _;
use object_store::path::Path;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::transfer::Put;
use super::{Remote, RemoteError};
use crate::cache::{Cache, Entry};
use crate::digest::Digest;
use crate::graph::{Fingerprint, Manifest};

/// Look-ups on their way at once.
const AT_ONCE: usize = 64;

/// What is written under a fingerprint.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SharedEntry<'a> {
    pub(super) entry: Cow<'a, Entry>,
    pub(super) manifest: Cow<'a, Manifest>,
}

/// A text and its digest: unlike content, an entry is not named after what is in it.
#[derive(Debug, Serialize, Deserialize)]
struct Sealed<'a> {
    digest: Digest,
    #[serde(borrow)]
    content: &'a RawValue,
}

pub(super) fn seal(content: &impl Serialize) -> Result<Vec<u8>, serde_json::Error> {
    let content = serde_json::value::to_raw_value(content)?;
    serde_json::to_vec(&Sealed {
        digest: Digest::of(content.get()),
        content: &content,
    })
}

/// # Errors
/// What is wrong with it, for people.
pub(super) fn unseal<T: for<'de> Deserialize<'de>>(bytes: &[u8]) -> Result<T, String> {
    let sealed: Sealed = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if Digest::of(sealed.content.get()) != sealed.digest {
        return Err("its content is not what its digest says".to_owned());
    }
    serde_json::from_str(sealed.content.get()).map_err(|error| error.to_string())
}

impl SharedEntry<'_> {
    fn is_of(&self, fingerprint: Fingerprint) -> bool {
        self.entry.fingerprint == fingerprint && self.manifest.fingerprint() == fingerprint
    }
}

impl Remote {
    /// An entry, `None` where there is none; one that is damaged is none, with a warning.
    async fn entry(
        &self,
        fingerprint: Fingerprint,
    ) -> Result<Option<SharedEntry<'static>>, RemoteError> {
        let client = self.client()?;
        let object = self.place(client, "entries", &format!("{fingerprint}.json"));
        let bytes = match self.get(client, &object).await {
            Err(RemoteError::Missing { .. }) => return Ok(None),
            other => other?,
        };
        let read = unseal::<SharedEntry>(&bytes).and_then(|shared| {
            if shared.is_of(fingerprint) {
                Ok(shared)
            } else {
                Err("it is the entry of something else".to_owned())
            }
        });
        match read {
            Ok(shared) => Ok(Some(shared)),
            Err(problem) => {
                self.report_bad(&object, &problem);
                Ok(None)
            }
        }
    }

    /// Notes an object that is not what it should be.
    pub(super) fn report_bad(&self, object: &Path, problem: &str) {
        if self.state().bad.insert(object.to_string()) {
            self.warn(format!(
                "`{object}` in the shared cache is not used: {problem}"
            ));
        }
    }
}

impl Cache {
    /// Looks in the shared cache for results that are not here; says how many were found. They are hits from now on,
    /// without their content. What was asked before is not asked again.
    pub fn find_shared(&self, fingerprints: &[Fingerprint]) -> usize {
        let Some(remote) = self.remote().filter(|remote| remote.is_up()) else {
            return 0;
        };
        let wanted: Vec<Fingerprint> = {
            let state = remote.state();
            let wanted = fingerprints.iter().copied();
            wanted
                .filter(|fingerprint| {
                    !state.absent.contains(fingerprint) && !state.is_lost(fingerprint)
                })
                .collect()
        };
        let (false, Ok(client)) = (wanted.is_empty(), remote.client()) else {
            return 0;
        };
        let ask = futures_util::stream::iter(wanted)
            .map(|fingerprint| async move { (fingerprint, remote.entry(fingerprint).await) })
            .buffer_unordered(AT_ONCE);
        let answers: Vec<_> = client.runtime.block_on(ask.collect());
        let mut found = 0;
        for (fingerprint, answer) in answers {
            match answer {
                Ok(Some(shared)) => {
                    self.take_over(remote, shared);
                    found += 1;
                }
                Ok(None) => {
                    remote.state().absent.insert(fingerprint);
                }
                // Told once, when it was given up.
                Err(_) => {}
            }
        }
        found
    }

    /// Looks for a whole pipeline by what it asks for: one request, however deep it is.
    pub fn find_shared_pipeline(&self, request: Digest) -> usize {
        let Some(remote) = self.remote().filter(|remote| remote.is_up()) else {
            return 0;
        };
        let Ok(client) = remote.client() else {
            return 0;
        };
        let object = remote.place(client, "pipelines", &format!("{request}.json"));
        let Ok(bytes) = client.runtime.block_on(remote.get(client, &object)) else {
            return 0;
        };
        let entries: Vec<SharedEntry> = match unseal(&bytes) {
            Ok(entries) => entries,
            Err(problem) => {
                remote.report_bad(&object, &problem);
                return 0;
            }
        };
        remote.state().set_pipeline(request);
        let mut found = 0;
        for shared in entries {
            let fingerprint = shared.entry.fingerprint;
            if shared.is_of(fingerprint)
                && !remote.state().is_lost(&fingerprint)
                && self.entry(fingerprint).is_none()
            {
                self.take_over(remote, shared);
                found += 1;
            }
        }
        found
    }

    fn take_over(&self, remote: &Remote, shared: SharedEntry<'static>) {
        let (entry, manifest) = (shared.entry.into_owned(), shared.manifest.into_owned());
        let fingerprint = entry.fingerprint;
        // Known from now on, without asking again; where it cannot be kept the next process asks again.
        if self
            .adopt_entry(Arc::new(entry), Arc::new(manifest))
            .is_ok()
        {
            remote.state().set_there(fingerprint);
        }
    }

    /// Writes the entries of a pipeline that finished, for those who ask for the same.
    ///
    /// # Errors
    /// The remote cannot be used.
    pub fn send_pipeline(
        &self,
        request: Digest,
        fingerprints: &[Fingerprint],
    ) -> Result<(), RemoteError> {
        let Some(remote) = self.remote().filter(|remote| remote.takes()) else {
            return Ok(());
        };
        let all_there = {
            let state = remote.state();
            !state.has_pipeline(&request)
                && fingerprints
                    .iter()
                    .all(|fingerprint| state.is_there(fingerprint))
        };
        if !all_there {
            return Ok(());
        }
        let mut found = Vec::with_capacity(fingerprints.len());
        for &fingerprint in fingerprints {
            let (Some(entry), Some(manifest)) =
                (self.entry(fingerprint), self.manifest(fingerprint)?)
            else {
                return Ok(());
            };
            found.push((entry, manifest));
        }
        let shared: Vec<_> = found
            .iter()
            .map(|(entry, manifest)| SharedEntry {
                entry: Cow::Borrowed(entry),
                manifest: Cow::Borrowed(manifest),
            })
            .collect();
        let bytes = seal(&shared).map_err(std::io::Error::from)?;
        let client = remote.client()?;
        let object = remote.place(client, "pipelines", &format!("{request}.json"));
        client
            .runtime
            .block_on(remote.put(client, &object, bytes))
            .map(|_: Put| remote.state().set_pipeline(request))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seal_breaks_with_any_change() {
        let sealed = seal(&vec!["a", "b"]).unwrap();
        assert_eq!(unseal::<Vec<String>>(&sealed).unwrap(), ["a", "b"]);
        for index in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[index] ^= 1;
            assert!(unseal::<Vec<String>>(&changed).is_err(), "byte {index}");
        }
    }
}
