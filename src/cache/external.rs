//! Digests of data outside the cache: a file, a folder, or an archive by what is in it.
//!
//! An index by size, times and inode saves reading gigabytes again. An entry is trusted only if the file was last
//! changed well before it was hashed: a later change within the clock's grain would not show ("racily clean" in git).

use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use fs_err as fs;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::archive::archive_digest;
use super::objects::{file_digest, mtime};
use crate::config::display;
use crate::digest::Digest;

#[derive(Debug, thiserror::Error)]
pub enum ExternalError {
    #[error("`{}` does not exist", display(.0))]
    Missing(PathBuf),
    #[error("`{}` cannot be read: {message}", display(.path))]
    Unreadable { path: PathBuf, message: String },
    #[error("`{}` is not a whole zip archive: {message}", display(.path))]
    Archive { path: PathBuf, message: String },
    #[error("`{member}` in `{}` unpacks to {} times its size, {} MiB", display(.path), .size / .packed.max(&1), .size >> 20)]
    Bomb {
        path: PathBuf,
        member: String,
        size: u64,
        packed: u64,
    },
    #[error("`{}` keeps changing while it is read", display(.0))]
    Unsteady(PathBuf),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Stat {
    size: u64,
    mtime: i64,
    ctime: i64,
    inode: u64,
    device: u64,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Known {
    stat: Stat,
    digest: Digest,
}

/// Remembers digests by path; saved between runs.
#[derive(Debug, Default)]
pub struct StatIndex {
    known: Mutex<Memory>,
}

#[derive(Debug, Default)]
struct Memory {
    files: HashMap<PathBuf, Known>,
    changed: bool,
}

impl StatIndex {
    /// Reads a saved index; one that cannot be read is an empty one, as it only saves time.
    pub fn load(path: &Path) -> Self {
        let files = fs::read(path)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default();
        Self {
            known: Mutex::new(Memory {
                files,
                changed: false,
            }),
        }
    }

    /// Writes the index, if there is news in it.
    pub fn save(&self, path: &Path) -> std::io::Result<()> {
        let mut memory = self.memory();
        if memory.changed {
            let sorted: BTreeMap<_, _> = memory.files.iter().collect();
            crate::atomic::write(path, &serde_json::to_vec(&sorted)?)?;
            memory.changed = false;
        }
        Ok(())
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The digest of a file's content, of a folder's tree, or of a zip archive's members.
    pub fn digest(&self, path: &Path) -> Result<Digest, ExternalError> {
        let path = std::path::absolute(path).map_err(|error| unreadable(path, error))?;
        match std::fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() => self.folder(&path),
            Ok(_) => self.file(&path),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Err(ExternalError::Missing(path))
            }
            Err(error) => Err(unreadable(&path, error)),
        }
    }

    fn file(&self, path: &Path) -> Result<Digest, ExternalError> {
        let mut before = stat(path)?;
        if let Some(known) = self
            .memory()
            .files
            .get(path)
            .filter(|known| known.stat == before)
        {
            return Ok(known.digest);
        }
        for _ in 0..3 {
            let start = now();
            let archive = path
                .extension()
                .is_some_and(|extension| extension.eq_ignore_ascii_case("zip"));
            let digest = if archive {
                archive_digest(path)?
            } else {
                file_digest(path).map_err(|error| unreadable(path, error))?
            };
            let after = stat(path)?;
            if after != before {
                before = after;
                continue;
            }
            if settled(&after, start) {
                let mut memory = self.memory();
                memory.files.insert(
                    path.to_path_buf(),
                    Known {
                        stat: after,
                        digest,
                    },
                );
                memory.changed = true;
            }
            return Ok(digest);
        }
        Err(ExternalError::Unsteady(path.to_path_buf()))
    }

    /// Links are followed, as model folders are often made of them.
    fn folder(&self, root: &Path) -> Result<Digest, ExternalError> {
        let mut files = Vec::new();
        let mut above = Vec::new();
        list(root, String::new(), &mut above, &mut files)?;
        files.sort();
        let digests: Vec<Digest> = files
            .par_iter()
            .map(|(_, path)| self.file(path))
            .collect::<Result<_, _>>()?;
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"flow folder 1");
        for ((name, _), digest) in files.iter().zip(digests) {
            member(&mut hasher, name, &digest);
        }
        Ok(hasher.finalize().into())
    }
}

fn list(
    folder: &Path,
    prefix: String,
    above: &mut Vec<PathBuf>,
    files: &mut Vec<(String, PathBuf)>,
) -> Result<(), ExternalError> {
    let real = fs::canonicalize(folder).map_err(|error| unreadable(folder, error))?;
    if above.contains(&real) {
        return Err(ExternalError::Unreadable {
            path: folder.to_path_buf(),
            message: "the link leads to a folder that it is in".to_owned(),
        });
    }
    above.push(real);
    for item in fs::read_dir(folder).map_err(|error| unreadable(folder, error))? {
        let item = item.map_err(|error| unreadable(folder, error))?;
        let name = format!("{prefix}{}", item.file_name().to_string_lossy());
        let metadata =
            std::fs::metadata(item.path()).map_err(|error| unreadable(&item.path(), error))?;
        if metadata.is_dir() {
            list(&item.path(), format!("{name}/"), above, files)?;
        } else {
            files.push((name, item.path()));
        }
    }
    above.pop();
    Ok(())
}

pub(super) fn member(hasher: &mut blake3::Hasher, name: &str, digest: &Digest) {
    hasher.update(&(name.len() as u64).to_le_bytes());
    hasher.update(name.as_bytes());
    hasher.update(digest.as_bytes());
}

pub(super) fn unreadable(path: &Path, error: std::io::Error) -> ExternalError {
    ExternalError::Unreadable {
        path: path.to_path_buf(),
        message: error.to_string(),
    }
}

fn stat(path: &Path) -> Result<Stat, ExternalError> {
    let metadata = std::fs::metadata(path).map_err(|error| unreadable(path, error))?;
    let ctime = metadata
        .ctime()
        .saturating_mul(1_000_000_000)
        .saturating_add(metadata.ctime_nsec());
    Ok(Stat {
        size: metadata.len(),
        mtime: mtime(&metadata),
        ctime,
        inode: metadata.ino(),
        device: metadata.dev(),
    })
}

fn now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| {
            i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
        })
}

/// Whether a later change would surely show in the times: file systems with whole seconds need longer.
fn settled(stat: &Stat, hashed: i64) -> bool {
    let last = stat.mtime.max(stat.ctime);
    let grain = if last % 1_000_000_000 == 0 {
        2_000_000_000
    } else {
        50_000_000
    };
    last.saturating_add(grain) < hashed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_their_trees() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        for top in ["one", "two"] {
            write(&format!("{top}/a"), "1");
            write(&format!("{top}/b/c"), "2");
        }
        let stats = StatIndex::default();
        let digest = |name: &str| stats.digest(&folder.path().join(name));
        assert_eq!(digest("one").unwrap(), digest("two").unwrap());
        std::fs::rename(folder.path().join("two/a"), folder.path().join("two/z")).unwrap();
        assert_ne!(digest("one").unwrap(), digest("two").unwrap());
        std::os::unix::fs::symlink("..", folder.path().join("two/b/up")).unwrap();
        assert!(matches!(
            digest("two"),
            Err(ExternalError::Unreadable { .. })
        ));
        assert!(matches!(digest("three"), Err(ExternalError::Missing(_))));
    }

    #[test]
    fn a_digest_is_remembered_only_once_the_file_has_settled() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data");
        let stats = StatIndex::default();
        for text in ["one", "two", "six"] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(stats.digest(&path).unwrap(), Digest::of(text));
        }
        assert!(stats.memory().files.is_empty());
        std::thread::sleep(std::time::Duration::from_millis(80));
        stats.digest(&path).unwrap();
        assert_eq!(stats.memory().files.len(), 1);
        let saved = folder.path().join("stat.json");
        stats.save(&saved).unwrap();
        assert_eq!(StatIndex::load(&saved).memory().files.len(), 1);
    }
}
