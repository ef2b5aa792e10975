//! Where things lie in a cache folder.
//!
//! ```text
//! cache/
//! ├── layout            version of this layout
//! ├── flow.duckdb       index, tables named by digest, verdicts
//! ├── ledger.jsonl      second copy of entries and verdicts, to make a damaged database anew
//! ├── index.json        copy of the index, so that a run with nothing to do need not open the database
//! ├── remote.json       what is known to be in the shared cache
//! ├── stat.json         digests of outside files by size and times
//! ├── objects/<digest>/ files outputs
//! ├── partial/<fp>/     scratch of unfinished nodes; survives a crash
//! ├── jobs/<fp>/        what processes elsewhere work at for nodes of a run
//! ├── jobs/<fp>.failed/ what they printed when they last failed; until the node has a result
//! ├── tmp/              emptied at every start
//! └── run.lock          who runs
//! ```

use std::path::{Path, PathBuf};

use fs_err as fs;

use super::CacheError;
use crate::digest::Digest;
use crate::graph::Fingerprint;

/// Bumped when older programs cannot read what newer ones write. 1: first layout.
pub(super) const LAYOUT: u32 = 1;

/// Extension of the log beside the database.
pub(super) const WRITE_AHEAD_LOG: &str = "duckdb.wal";

/// Extension of a job's folder that was put aside because the job failed.
pub(crate) const FAILED_JOB: &str = "failed";

#[derive(Debug, Clone)]
pub(super) struct Layout {
    root: PathBuf,
}

impl Layout {
    pub(super) fn new(root: &Path) -> Self {
        Self {
            root: root.to_path_buf(),
        }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn database(&self) -> PathBuf {
        self.root.join("flow.duckdb")
    }

    /// Where a database that could not be read is put aside.
    pub(super) fn damaged_database(&self) -> PathBuf {
        self.root.join("flow.duckdb.damaged")
    }

    pub(super) fn snapshot(&self) -> PathBuf {
        self.root.join("index.json")
    }

    pub(super) fn ledger(&self) -> PathBuf {
        self.root.join("ledger.jsonl")
    }

    pub(super) fn remote(&self) -> PathBuf {
        self.root.join("remote.json")
    }

    pub(super) fn stats(&self) -> PathBuf {
        self.root.join("stat.json")
    }

    pub(super) fn objects(&self) -> PathBuf {
        self.root.join("objects")
    }

    pub(super) fn object(&self, digest: &Digest) -> PathBuf {
        self.root.join("objects").join(digest.to_string())
    }

    pub(super) fn partials(&self) -> PathBuf {
        self.root.join("partial")
    }

    pub(super) fn partial(&self, fingerprint: Fingerprint) -> PathBuf {
        self.root.join("partial").join(fingerprint.to_string())
    }

    pub(super) fn jobs(&self) -> PathBuf {
        self.root.join("jobs")
    }

    pub(super) fn job(&self, fingerprint: Fingerprint) -> PathBuf {
        self.root.join("jobs").join(fingerprint.to_string())
    }

    pub(super) fn failed_job(&self, fingerprint: Fingerprint) -> PathBuf {
        self.job(fingerprint).with_extension(FAILED_JOB)
    }

    pub(super) fn tmp(&self) -> PathBuf {
        self.root.join("tmp")
    }

    /// What the database of this process does not hold in memory.
    pub(super) fn spill(&self) -> PathBuf {
        self.tmp().join(format!("spill-{}", std::process::id()))
    }

    pub(super) fn lock(&self) -> PathBuf {
        self.root.join("run.lock")
    }

    /// Refuses a cache written by a newer flow; a folder without a version is new.
    pub(super) fn check_version(&self) -> Result<bool, CacheError> {
        let path = self.root.join("layout");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        match text.trim().parse::<u32>() {
            Ok(found) if found <= LAYOUT => Ok(true),
            Ok(found) => Err(CacheError::NewerLayout {
                path: self.root.clone(),
                found: found.to_string(),
                known: LAYOUT,
            }),
            Err(_) => Err(CacheError::Damaged {
                path,
                message: format!("`{}` is not a layout version", text.trim()),
            }),
        }
    }

    /// Makes the folders and empties `tmp/`; only for the holder of the run lock.
    pub(super) fn prepare(&self) -> Result<(), CacheError> {
        let known = self.check_version()?;
        for folder in [self.objects(), self.partials(), self.jobs(), self.tmp()] {
            fs::create_dir_all(&folder)?;
        }
        for leftover in fs::read_dir(self.tmp())? {
            remove(&leftover?.path())?;
        }
        if !known {
            let version = format!("{LAYOUT}\n");
            crate::atomic::write_durable(&self.root.join("layout"), version.as_bytes())?;
        }
        Ok(())
    }

    /// A new path in `tmp/`.
    pub(super) fn scratch(&self) -> PathBuf {
        use std::sync::atomic::{AtomicU64, Ordering};
        static NEXT: AtomicU64 = AtomicU64::new(0);
        self.tmp()
            .join(NEXT.fetch_add(1, Ordering::Relaxed).to_string())
    }
}

/// Removes a file or a folder with all that is in it.
pub(super) fn remove(path: &Path) -> std::io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
