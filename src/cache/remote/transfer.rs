//! Objects to and from files, in parts, with the number of parts in memory bounded.

use std::io::{Read, Write};
use std::time::Duration;

use fs_err as fs;
use futures_util::StreamExt as _;
use object_store::path::Path;
use object_store::{
    GetOptions, GetRange, ObjectStoreExt as _, PutMode, PutOptions, PutPayload, WriteMultipart,
};
use std::sync::atomic::Ordering::Relaxed;
use tokio::sync::SemaphorePermit;

use super::client::Client;
use super::error::plain;
use super::{Remote, RemoteError};
use crate::digest::Digest;
use crate::failpoint;

/// Files up to this size move in one request.
pub(super) const PART: u64 = 8 << 20;
/// Parts of one file on their way at once.
const PARTS: usize = 6;
/// Parts of all files on their way at once: 128 MiB in memory.
pub(super) const ROOM: usize = 16;
/// S3 takes 10,000 parts at most.
const MOST_PARTS: u64 = 9_000;
/// How long a request that moves nothing large may take.
const PATIENCE: Duration = Duration::from_secs(15);

/// What became of an object that was to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Put {
    Written,
    /// Somebody else was faster.
    There,
}

impl Remote {
    /// What an error of the store means: the object is not there, or the store cannot be used.
    fn explain(&self, object: &Path, error: object_store::Error) -> RemoteError {
        match error {
            object_store::Error::NotFound { .. } => RemoteError::Missing {
                object: object.to_string(),
            },
            error => self.give_up(plain(&error.to_string())),
        }
    }

    async fn patient<T>(
        &self,
        object: &Path,
        work: impl Future<Output = object_store::Result<T>>,
    ) -> Result<T, RemoteError> {
        self.traffic.requests.fetch_add(1, Relaxed);
        match tokio::time::timeout(PATIENCE, work).await {
            Ok(done) => done.map_err(|error| self.explain(object, error)),
            Err(_) => Err(self.give_up(format!("no answer in {} s", PATIENCE.as_secs()))),
        }
    }

    pub(super) async fn exists(&self, client: &Client, object: &Path) -> Result<bool, RemoteError> {
        match self.patient(object, client.store.head(object)).await {
            Ok(_) => Ok(true),
            Err(RemoteError::Missing { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// A small object.
    pub(super) async fn get(&self, client: &Client, object: &Path) -> Result<Vec<u8>, RemoteError> {
        let read = async { client.store.get(object).await?.bytes().await };
        let bytes = self.patient(object, read).await?;
        self.traffic.received.fetch_add(bytes.len() as u64, Relaxed);
        Ok(bytes.into())
    }

    /// Writes a small object unless there is one; one that is known to be bad is replaced.
    pub(super) async fn put(
        &self,
        client: &Client,
        object: &Path,
        bytes: Vec<u8>,
    ) -> Result<Put, RemoteError> {
        failpoint::hit("remote.put")?;
        let size = bytes.len() as u64;
        let bad = self.state().bad.contains(object.as_ref());
        let options = PutOptions {
            mode: if bad {
                PutMode::Overwrite
            } else {
                PutMode::Create
            },
            ..PutOptions::default()
        };
        self.traffic.requests.fetch_add(1, Relaxed);
        let payload = PutPayload::from(bytes);
        match client.store.put_opts(object, payload, options).await {
            Ok(_) => {
                self.traffic.sent.fetch_add(size, Relaxed);
                self.state().bad.remove(object.as_ref());
                Ok(Put::Written)
            }
            Err(object_store::Error::AlreadyExists { .. }) => Ok(Put::There),
            Err(error) => Err(self.refused(&error)),
        }
    }

    /// Writes a file of any size unless the object is there. A large one is looked for first, and a part of it that was
    /// written when the process ends is no object.
    pub(super) async fn upload(
        &self,
        client: &Client,
        file: &std::path::Path,
        object: &Path,
    ) -> Result<Put, RemoteError> {
        let mut reader = fs::File::open(file)?;
        let size = reader.metadata()?.len();
        let _room = self.room_for(size).await;
        if size <= PART {
            let mut bytes = Vec::with_capacity(size as usize);
            reader.read_to_end(&mut bytes)?;
            return self.put(client, object, bytes).await;
        }
        let bad = self.state().bad.contains(object.as_ref());
        if !bad && self.exists(client, object).await? {
            return Ok(Put::There);
        }
        failpoint::hit("remote.put")?;
        let failed = |error: object_store::Error| self.refused(&error);
        let part = PART.max(size.div_ceil(MOST_PARTS)) as usize;
        let upload = client.store.put_multipart(object).await.map_err(failed)?;
        let mut writer = WriteMultipart::new_with_chunk_size(upload, part);
        loop {
            writer.wait_for_capacity(PARTS).await.map_err(failed)?;
            let mut bytes = Vec::with_capacity(part);
            (&mut reader).take(part as u64).read_to_end(&mut bytes)?;
            if bytes.is_empty() {
                break;
            }
            let length = bytes.len() as u64;
            writer.put(bytes.into());
            self.traffic.requests.fetch_add(1, Relaxed);
            self.traffic.sent.fetch_add(length, Relaxed);
        }
        writer.finish().await.map_err(failed)?;
        self.traffic.requests.fetch_add(2, Relaxed);
        self.state().bad.remove(object.as_ref());
        Ok(Put::Written)
    }

    /// Waits until there is memory for a file's parts.
    async fn room_for(&self, size: u64) -> Option<SemaphorePermit<'_>> {
        let parts = size.div_ceil(PART).clamp(1, PARTS as u64) as u32;
        // Never closed.
        self.room.acquire_many(parts).await.ok()
    }

    /// Reads an object into a new file; gives the digest of what came. `size` is what is expected, where that is known.
    pub(super) async fn download(
        &self,
        client: &Client,
        object: &Path,
        file: &std::path::Path,
        size: Option<u64>,
    ) -> Result<Digest, RemoteError> {
        let _room = self.room_for(size.unwrap_or(u64::MAX)).await;
        let range = |start: u64, end: u64| GetOptions {
            range: Some(GetRange::Bounded(start..end)),
            ..GetOptions::default()
        };
        // The first part tells how many there are.
        self.traffic.requests.fetch_add(1, Relaxed);
        let first = client.store.get_opts(object, range(0, PART)).await;
        let first = first.map_err(|error| self.explain(object, error))?;
        let size = first.meta.size;
        let mut writer = Received {
            file: fs::File::create(file)?,
            hasher: blake3::Hasher::new(),
            remote: self,
        };
        let bytes = first.bytes().await;
        writer.add(&bytes.map_err(|error| self.explain(object, error))?)?;
        let starts: Vec<u64> = (PART..size).step_by(PART as usize).collect();
        let mut parts = futures_util::stream::iter(starts)
            .map(|start| {
                self.traffic.requests.fetch_add(1, Relaxed);
                client
                    .store
                    .get_range(object, start..size.min(start + PART))
            })
            .buffered(PARTS);
        while let Some(bytes) = parts.next().await {
            writer.add(&bytes.map_err(|error| self.explain(object, error))?)?;
        }
        Ok(writer.hasher.finalize().into())
    }
}

struct Received<'a> {
    file: fs::File,
    hasher: blake3::Hasher,
    remote: &'a Remote,
}

impl Received<'_> {
    fn add(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.hasher.update(bytes);
        self.remote
            .traffic
            .received
            .fetch_add(bytes.len() as u64, Relaxed);
        self.file.write_all(bytes)
    }
}
