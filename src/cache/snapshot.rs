//! A copy of the index beside the database, so that a run that finds everything cached never opens DuckDB.
//!
//! It names the size, time and inode that the database file had; any later write there makes it worthless.

use std::os::unix::fs::MetadataExt;

use fs_err as fs;
use serde::{Deserialize, Serialize};

use super::index::{Contents, Index};
use super::layout::Layout;
use super::objects::mtime;
use crate::atomic;

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Snapshot {
    version: u32,
    database: Identity,
    contents: Contents,
}

/// The database file as it was when the snapshot was taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    size: u64,
    mtime: i64,
    inode: u64,
}

/// `None` where there is no database, or changes wait in its write-ahead log.
fn identity(layout: &Layout) -> Option<Identity> {
    let path = layout.database();
    let metadata = std::fs::metadata(&path).ok()?;
    let log = path.with_extension(super::layout::WRITE_AHEAD_LOG);
    (!log.exists()).then(|| Identity {
        size: metadata.len(),
        mtime: mtime(&metadata),
        inode: metadata.ino(),
    })
}

impl Snapshot {
    /// The index as of the database file that is there now, or `None`.
    pub(super) fn read(layout: &Layout) -> Option<(Index, Identity)> {
        let bytes = fs::read(layout.snapshot()).ok()?;
        let snapshot: Self = serde_json::from_slice(&bytes).ok()?;
        let fits = snapshot.version == super::layout::LAYOUT
            && Some(&snapshot.database) == identity(layout).as_ref();
        fits.then(|| (Index::from_contents(snapshot.contents), snapshot.database))
    }

    /// Writes the snapshot unless `known` still fits; only while the database is closed, so that its file is complete.
    pub(super) fn refresh(
        layout: &Layout,
        index: &Index,
        known: &mut Option<Identity>,
    ) -> std::io::Result<()> {
        let Some(database) = identity(layout) else {
            return Ok(());
        };
        if known.as_ref() != Some(&database) {
            let snapshot = Self {
                version: super::layout::LAYOUT,
                database: database.clone(),
                contents: index.contents(),
            };
            atomic::write(&layout.snapshot(), &serde_json::to_vec(&snapshot)?)?;
            *known = Some(database);
        }
        Ok(())
    }
}
