//! Content from the shared cache, when something on this machine reads it; its digest is made anew on the way.

use std::os::unix::fs::PermissionsExt as _;

use fs_err as fs;
use futures_util::{StreamExt as _, TryStreamExt as _};
use std::sync::PoisonError;

use super::client::Client;
use super::content::Member;
use super::{Remote, RemoteError, lock};
use crate::cache::layout::remove;
use crate::cache::objects::{FileKind, tree_digest};
use crate::cache::{Artifact, Cache, CacheError, Entry};
use crate::config::ArtifactKind;
use crate::digest::Digest;
use crate::failpoint;
use crate::graph::Fingerprint;

/// Files of one folder on their way at once.
const AT_ONCE: usize = 8;

impl Cache {
    /// Brings an artifact here if it is not.
    ///
    /// # Errors
    /// It is not in the shared cache, or not what it should be, or that cannot be used; or this cache cannot take it.
    pub fn fetch(&self, artifact: &Artifact) -> Result<(), RemoteError> {
        if self.has(artifact) {
            return Ok(());
        }
        let Some(remote) = self.remote() else {
            return Err(RemoteError::Missing {
                object: artifact.digest.short(),
            });
        };
        let client = remote.client()?;
        let _one = remote.begin(artifact.digest);
        if self.has(artifact) {
            return Ok(());
        }
        let fetched = match artifact.kind {
            ArtifactKind::Table => self.fetch_table(remote, client, artifact),
            ArtifactKind::Files => self.fetch_files(remote, client, artifact),
        };
        if let Err(RemoteError::Damaged { object, message }) = &fetched {
            remote.report_bad(&object.as_str().into(), message);
        }
        fetched
    }

    /// Notes that the content of a result cannot be had, so that it is made again and, where it is gone for all, sent anew.
    pub fn set_lost(&self, fingerprint: Fingerprint) {
        if let Some(remote) = self.remote() {
            let up = remote.is_up();
            let mut state = remote.state();
            if up {
                state.set_lost(fingerprint, true);
            } else {
                state.away.insert(fingerprint);
            }
        }
    }

    /// The same for all results that gave an artifact.
    pub fn set_content_lost(&self, artifact: &Artifact) {
        let named = |entry: &Entry| {
            let mut outputs = entry.outputs.values();
            outputs.any(|output| output.digest == artifact.digest)
        };
        let lost: Vec<Fingerprint> = {
            let index = self.index();
            let entries = index.entries().filter(|entry| named(entry));
            entries.map(|entry| entry.fingerprint).collect()
        };
        lost.into_iter()
            .for_each(|fingerprint| self.set_lost(fingerprint));
    }

    fn fetch_table(
        &self,
        remote: &Remote,
        client: &Client,
        artifact: &Artifact,
    ) -> Result<(), RemoteError> {
        let object = remote.place(client, "tables", &format!("{}.parquet", artifact.digest));
        let file = self.layout.scratch();
        let download = remote.download(client, &object, &file, None);
        let fetched = client.runtime.block_on(download).and_then(|_| {
            failpoint::hit("remote.fetched")?;
            self.import_table(artifact, &file)
                .map_err(|error| match error {
                    CacheError::OtherContent { found, .. } => RemoteError::damaged(
                        &object,
                        format!("it holds the table `{}`", found.short()),
                    ),
                    CacheError::Unreadable { message, .. } => RemoteError::damaged(
                        &object,
                        message.replace(&*file.to_string_lossy(), "the file"),
                    ),
                    error => error.into(),
                })
        });
        // Left behind it would be emptied with the rest of its folder.
        let _ = remove(&file);
        fetched
    }

    fn fetch_files(
        &self,
        remote: &Remote,
        client: &Client,
        artifact: &Artifact,
    ) -> Result<(), RemoteError> {
        let list = remote.place(client, "files", &format!("{}.json", artifact.digest));
        let bytes = client.runtime.block_on(remote.get(client, &list))?;
        let members: Vec<Member> =
            serde_json::from_slice(&bytes).map_err(|error| RemoteError::damaged(&list, error))?;
        let records: Vec<_> = members.iter().map(Member::record).collect();
        if tree_digest(&records) != artifact.digest || !members.iter().all(Member::is_inside) {
            return Err(RemoteError::damaged(&list, "it lists other files"));
        }
        let folder = self.layout.scratch();
        let fetched = client
            .runtime
            .block_on(remote.write_members(client, &folder, &members))
            .and_then(|()| {
                failpoint::hit("remote.fetched")?;
                self.adopt_files(&folder, Some(&artifact.digest))
                    .map_err(|error| match error {
                        CacheError::OtherContent { .. } => {
                            RemoteError::damaged(&list, "it lists other files")
                        }
                        CacheError::Files { message, .. } => {
                            RemoteError::damaged(&list, format!("a file {message}"))
                        }
                        error => error.into(),
                    })
            });
        if fetched.is_err() {
            // The first error is the one to report.
            let _ = remove(&folder);
        }
        fetched?;
        Ok(self.keep_record(&artifact.digest)?)
    }
}

impl Remote {
    /// Waits until nobody else fetches this.
    fn begin(&self, digest: Digest) -> Coming<'_> {
        let mut coming = lock(&self.coming);
        while !coming.insert(digest) {
            coming = self
                .came
                .wait(coming)
                .unwrap_or_else(PoisonError::into_inner);
        }
        Coming {
            remote: self,
            digest,
        }
    }

    async fn write_members(
        &self,
        client: &Client,
        folder: &std::path::Path,
        members: &[Member],
    ) -> Result<(), RemoteError> {
        fs::create_dir(folder)?;
        for member in members {
            let path = folder.join(&member.path);
            match member.kind {
                FileKind::Folder => fs::create_dir_all(path)?,
                _ => fs::create_dir_all(path.parent().unwrap_or(folder))?,
            }
        }
        futures_util::stream::iter(members.iter().filter(|member| member.has_content()))
            .map(Ok::<_, RemoteError>)
            .try_for_each_concurrent(AT_ONCE, |member| async move {
                let path = folder.join(&member.path);
                if member.size == 0 {
                    fs::File::create(&path)?;
                } else {
                    let object = self.place(client, "contents", &member.digest.to_string());
                    let digest = self
                        .download(client, &object, &path, Some(member.size))
                        .await?;
                    if digest != member.digest {
                        let found = format!("its digest is `{}`", digest.short());
                        return Err(RemoteError::damaged(&object, found));
                    }
                }
                if member.kind == FileKind::Executable {
                    fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
                }
                Ok(())
            })
            .await?;
        // Last, so that nothing is written through one.
        for member in members {
            if let Some(target) = member
                .target
                .as_ref()
                .filter(|_| member.kind == FileKind::Link)
            {
                std::os::unix::fs::symlink(target, folder.join(&member.path))?;
            }
        }
        Ok(())
    }
}

struct Coming<'a> {
    remote: &'a Remote,
    digest: Digest,
}

impl Drop for Coming<'_> {
    fn drop(&mut self) {
        lock(&self.remote.coming).remove(&self.digest);
        self.remote.came.notify_all();
    }
}
