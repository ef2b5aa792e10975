//! What this machine knows of a shared cache without asking; kept beside the cache, and only a shortcut.

use std::collections::{BTreeSet, HashSet};

use serde::{Deserialize, Serialize};

use crate::cache::layout::Layout;
use crate::digest::Digest;
use crate::graph::Fingerprint;

#[derive(Debug, Default)]
pub(super) struct State {
    known: Known,
    changed: bool,
    /// Asked for in this process and not there.
    pub(super) absent: HashSet<Fingerprint>,
    /// Known to be there, and out of reach for this process.
    pub(super) away: HashSet<Fingerprint>,
    /// Objects that are not what their names say; the next who has the content writes them anew.
    pub(super) bad: HashSet<String>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Known {
    address: String,
    /// Entries that are there.
    there: BTreeSet<Fingerprint>,
    /// Entries that are there while their content is not: to be made again and sent.
    lost: BTreeSet<Fingerprint>,
    /// Digests of the requests of pipelines that are there.
    pipelines: BTreeSet<Digest>,
}

impl State {
    pub(super) fn read(layout: &Layout, address: &str) -> Self {
        let known = read(layout).filter(|known| known.address == address);
        let known = known.unwrap_or_else(|| Known {
            address: address.to_owned(),
            ..Known::default()
        });
        Self {
            known,
            ..Self::default()
        }
    }

    pub(super) fn last_address(layout: &Layout) -> Option<String> {
        Some(read(layout)?.address).filter(|address| !address.is_empty())
    }

    /// Writes what changed; losing it costs some requests.
    pub(super) fn save(&mut self, layout: &Layout) -> std::io::Result<()> {
        if std::mem::take(&mut self.changed) {
            let bytes = serde_json::to_vec(&self.known)?;
            crate::atomic::write(&layout.remote(), &bytes)?;
        }
        Ok(())
    }

    pub(super) fn is_there(&self, fingerprint: &Fingerprint) -> bool {
        self.known.there.contains(fingerprint)
            && !self.known.lost.contains(fingerprint)
            && !self.away.contains(fingerprint)
    }

    pub(super) fn set_there(&mut self, fingerprint: Fingerprint) {
        self.changed |= self.known.there.insert(fingerprint);
        self.absent.remove(&fingerprint);
    }

    /// Forgets what was there, to look anew.
    pub(super) fn forget(&mut self) {
        self.changed = true;
        self.known.there.clear();
        self.known.pipelines.clear();
    }

    pub(super) fn is_lost(&self, fingerprint: &Fingerprint) -> bool {
        self.known.lost.contains(fingerprint)
    }

    pub(super) fn set_lost(&mut self, fingerprint: Fingerprint, lost: bool) {
        self.changed |= if lost {
            self.known.lost.insert(fingerprint)
        } else {
            self.known.lost.remove(&fingerprint)
        };
    }

    pub(super) fn has_pipeline(&self, request: &Digest) -> bool {
        self.known.pipelines.contains(request)
    }

    pub(super) fn set_pipeline(&mut self, request: Digest) {
        self.changed |= self.known.pipelines.insert(request);
    }
}

fn read(layout: &Layout) -> Option<Known> {
    let bytes = fs_err::read(layout.remote()).ok()?;
    serde_json::from_slice(&bytes).ok()
}
