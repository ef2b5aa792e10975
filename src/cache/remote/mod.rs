//! The shared cache: results kept in an object store, so that one machine need not make what another has made.
//!
//! ```text
//! <prefix>/flow-1/
//! ├── entries/<fingerprint>.json    what a node gave: digests, metrics, manifest; written last
//! ├── pipelines/<request>.json      the entries of a whole pipeline, so that one request finds them all
//! ├── tables/<digest>.parquet
//! ├── files/<digest>.json           a folder: names, and digests of contents
//! └── contents/<digest>             the content of a file, once however many folders have it
//! ```
//!
//! Objects are never changed: a name says what is in them, and whoever writes it second finds it there. An entry is found
//! without its content; that is fetched once something on this machine reads it. Nothing here can fail a run: what cannot
//! be had is made again, what cannot be sent is sent next time.

mod client;
mod content;
mod entries;
mod error;
mod fetch;
mod send;
mod state;
mod survey;
mod transfer;

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use object_store::path::Path;
use tokio::sync::Semaphore;

pub use error::RemoteError;
pub use send::Sent;
pub use survey::SharedSize;

use super::layout::Layout;
use crate::digest::Digest;
use client::Client;
use error::plain;
use state::State;

/// One shared cache as this process knows it.
pub struct Remote {
    address: String,
    offline: bool,
    client: OnceLock<Result<Client, String>>,
    /// Why it is not asked any more.
    down: OnceLock<String>,
    /// Why nothing is sent any more: reading alone may be allowed.
    denied: OnceLock<String>,
    state: Mutex<State>,
    /// For each part of a file in memory, of all transfers together.
    room: Semaphore,
    /// Artifacts on their way here, so that two nodes do not fetch the same twice.
    coming: Mutex<HashSet<Digest>>,
    came: Condvar,
    warnings: Mutex<Vec<String>>,
    traffic: Traffic,
}

/// What went over the network so far.
#[derive(Debug, Default)]
struct Traffic {
    requests: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
}

/// A copy of the counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub requests: u64,
    /// Bytes of content.
    pub sent: u64,
    pub received: u64,
}

impl Remote {
    /// Does nothing yet. `address` is one that `config::check_remote` accepts; offline, nothing is ever asked.
    pub fn new(address: &str, offline: bool, cache: &std::path::Path) -> Self {
        let address = address.trim_end_matches('/').to_owned();
        let state = State::read(&Layout::new(cache), &address);
        Self {
            address,
            offline,
            client: OnceLock::new(),
            down: OnceLock::new(),
            denied: OnceLock::new(),
            state: Mutex::new(state),
            room: Semaphore::new(transfer::ROOM),
            coming: Mutex::default(),
            came: Condvar::new(),
            warnings: Mutex::default(),
            traffic: Traffic::default(),
        }
    }

    /// The address that a cache folder was last used with.
    pub fn last_address(cache: &std::path::Path) -> Option<String> {
        State::last_address(&Layout::new(cache))
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    /// Whether there is any use in asking.
    pub fn is_up(&self) -> bool {
        !self.offline && self.down.get().is_none()
    }

    /// Whether there is any use in sending.
    pub fn takes(&self) -> bool {
        self.is_up() && self.denied.get().is_none()
    }

    /// What was noticed since the last call, for people.
    pub fn warnings(&self) -> Vec<String> {
        std::mem::take(&mut *lock(&self.warnings))
    }

    pub fn counts(&self) -> Counts {
        let Traffic {
            requests,
            sent,
            received,
        } = &self.traffic;
        Counts {
            requests: requests.load(Ordering::Relaxed),
            sent: sent.load(Ordering::Relaxed),
            received: received.load(Ordering::Relaxed),
        }
    }

    /// Whether a result is known to be there, without asking.
    pub(super) fn has(&self, fingerprint: &crate::graph::Fingerprint) -> bool {
        self.state().is_there(fingerprint)
    }

    pub(super) fn save(&self, layout: &Layout) -> std::io::Result<()> {
        self.state().save(layout)
    }

    fn warn(&self, message: String) {
        lock(&self.warnings).push(message);
    }

    /// Gives up on the remote for the rest of the process, with one warning.
    fn give_up(&self, message: String) -> RemoteError {
        if self.down.set(message.clone()).is_ok() {
            self.warn(format!(
                "the shared cache `{}` cannot be used ({message}): the cache on this machine alone is used from here; once it can be, `flow cache push` sends what is missing there",
                self.address
            ));
        }
        self.unusable(message)
    }

    /// What an error at writing means for the rest of the process.
    fn refused(&self, error: &object_store::Error) -> RemoteError {
        use object_store::Error::{PermissionDenied, Unauthenticated};
        let message = plain(&error.to_string());
        if !matches!(error, PermissionDenied { .. } | Unauthenticated { .. }) {
            return self.give_up(message);
        }
        if self.denied.set(message.clone()).is_ok() {
            self.warn(format!(
                "nothing is sent to the shared cache `{}`, which allows no writing ({message})",
                self.address
            ));
        }
        self.unusable(message)
    }

    fn unusable(&self, message: String) -> RemoteError {
        RemoteError::Unusable {
            address: self.address.clone(),
            message,
        }
    }

    fn client(&self) -> Result<&Client, RemoteError> {
        if self.offline {
            return Err(self.unusable("this run is offline".to_owned()));
        }
        if let Some(why) = self.down.get() {
            return Err(self.unusable(why.clone()));
        }
        self.client
            .get_or_init(|| Client::new(&self.address))
            .as_ref()
            .map_err(|message| self.give_up(message.clone()))
    }

    /// The place of an object: `entries/1f….json`.
    fn place(&self, client: &Client, folder: &str, name: &str) -> Path {
        client.prefix.clone().join(folder).join(name)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Remote")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
