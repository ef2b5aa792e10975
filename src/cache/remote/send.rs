//! Results to the shared cache: content first, the entry last, so that no entry names what is not there.

use std::borrow::Cow;
use std::collections::BTreeMap;

use futures_util::{StreamExt as _, TryStreamExt as _};

use super::client::Client;
use super::content::Member;
use super::entries::{SharedEntry, seal};
use super::transfer::Put;
use super::{Remote, RemoteError};
use crate::cache::layout::remove;
use crate::cache::{Artifact, Cache};
use crate::config::ArtifactKind;
use crate::digest::Digest;
use crate::failpoint;
use crate::graph::Fingerprint;

/// Files of one folder on their way at once.
const AT_ONCE: usize = 8;
/// From this size on it is cheaper to ask whether a table is there than to write it out.
const LARGE: u64 = 1 << 20;

/// What became of a result that was to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    Sent,
    /// It was there.
    There,
    /// Its content is not on this machine.
    NotHere,
}

impl Cache {
    /// Whether a result is here and, as far as known, not in the shared cache.
    pub fn is_unsent(&self, fingerprint: Fingerprint) -> bool {
        self.remote()
            .is_some_and(|remote| remote.takes() && !remote.state().is_there(&fingerprint))
            && self
                .entry(fingerprint)
                .is_some_and(|entry| self.is_here(&entry))
    }

    /// Sends a result with its content. Another machine that does the same at once is no trouble.
    ///
    /// # Errors
    /// The remote cannot be used, or the content not be read.
    pub fn send(&self, fingerprint: Fingerprint) -> Result<Sent, RemoteError> {
        let (Some(remote), Some(entry)) = (self.remote(), self.entry(fingerprint)) else {
            return Ok(Sent::NotHere);
        };
        if !self.is_here(&entry) {
            return Ok(Sent::NotHere);
        }
        let Some(manifest) = self.manifest(fingerprint)? else {
            return Ok(Sent::NotHere);
        };
        let client = remote.client()?;
        let object = remote.place(client, "entries", &format!("{fingerprint}.json"));
        let (lost, asked) = {
            let mut state = remote.state();
            let lost = state.is_lost(&fingerprint);
            if lost {
                // What is there is of no use to anybody; all of it is written anew.
                state.bad.insert(object.to_string());
            }
            (lost, state.absent.contains(&fingerprint))
        };
        if !lost && !asked && client.runtime.block_on(remote.exists(client, &object))? {
            remote.state().set_there(fingerprint);
            return Ok(Sent::There);
        }
        for artifact in entry.outputs.values() {
            match artifact.kind {
                ArtifactKind::Table => self.send_table(remote, client, artifact, lost)?,
                ArtifactKind::Files => self.send_files(remote, client, artifact, lost)?,
            }
        }
        let shared = SharedEntry {
            entry: Cow::Borrowed(&entry),
            manifest: Cow::Borrowed(&manifest),
        };
        let bytes = seal(&shared).map_err(std::io::Error::from)?;
        failpoint::hit("remote.entry")?;
        let put = client
            .runtime
            .block_on(remote.put(client, &object, bytes))?;
        let mut state = remote.state();
        state.set_lost(fingerprint, false);
        state.set_there(fingerprint);
        Ok(match put {
            Put::Written => Sent::Sent,
            Put::There => Sent::There,
        })
    }

    fn send_table(
        &self,
        remote: &Remote,
        client: &Client,
        artifact: &Artifact,
        lost: bool,
    ) -> Result<(), RemoteError> {
        let object = remote.place(client, "tables", &format!("{}.parquet", artifact.digest));
        if lost {
            remote.state().bad.insert(object.to_string());
        }
        let bad = remote.state().bad.contains(object.as_ref());
        if !bad
            && artifact.bytes >= LARGE
            && client.runtime.block_on(remote.exists(client, &object))?
        {
            return Ok(());
        }
        let file = self.layout.scratch();
        let sent = self
            .export_artifact(artifact, &file)
            .map_err(RemoteError::from)
            .and_then(|()| {
                client
                    .runtime
                    .block_on(remote.upload(client, &file, &object))
            });
        // Left behind it would be emptied with the rest of its folder.
        let _ = remove(&file);
        sent.map(|_: Put| ())
    }

    fn send_files(
        &self,
        remote: &Remote,
        client: &Client,
        artifact: &Artifact,
        lost: bool,
    ) -> Result<(), RemoteError> {
        let list = remote.place(client, "files", &format!("{}.json", artifact.digest));
        if lost {
            remote.state().bad.insert(list.to_string());
        }
        let bad = remote.state().bad.contains(list.as_ref());
        if !bad && client.runtime.block_on(remote.exists(client, &list))? {
            return Ok(());
        }
        let folder = self.object_path(&artifact.digest);
        let records = self.index().record(&artifact.digest);
        let files = records.as_ref().map_or(&[][..], |record| &record.files);
        let members: Vec<Member> = files
            .iter()
            .map(|file| Member::of(&folder, file))
            .collect::<Result<_, _>>()?;
        // Equal contents once.
        let contents: BTreeMap<Digest, &Member> = members
            .iter()
            .filter(|member| member.has_content() && member.size > 0)
            .map(|member| (member.digest, member))
            .collect();
        let send = futures_util::stream::iter(contents)
            .map(Ok)
            .try_for_each_concurrent(AT_ONCE, |(digest, member)| {
                let object = remote.place(client, "contents", &digest.to_string());
                if bad {
                    // Which of them are sound is not known: the first that is not ends a transfer.
                    remote.state().bad.insert(object.to_string());
                }
                let file = folder.join(&member.path);
                async move {
                    remote.upload(client, &file, &object).await?;
                    Ok::<(), RemoteError>(())
                }
            });
        client.runtime.block_on(send)?;
        let bytes = serde_json::to_vec(&members).map_err(std::io::Error::from)?;
        client.runtime.block_on(remote.put(client, &list, bytes))?;
        Ok(())
    }
}
