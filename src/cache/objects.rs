//! Files outputs: folders in `objects/`, named by a hash over their tree.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Component, Path};

use fs_err as fs;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::index::Record;
use super::layout::remove;
use super::{Artifact, Cache, CacheError};
use crate::config::ArtifactKind;
use crate::digest::Digest;
use crate::failpoint;

/// Files from this size on are hashed by several threads over a memory map.
const LARGE: u64 = 1 << 20;

/// One entry of a tree, as it was when it was stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FileRecord {
    /// Relative, with `/`.
    pub(super) path: String,
    pub(super) kind: FileKind,
    pub(super) size: u64,
    pub(super) mtime: i64,
    /// Of the content, or of a link's target; of nothing for an empty folder.
    pub(super) digest: Digest,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum FileKind {
    File,
    Executable,
    Link,
    /// An empty folder; others are implied by what is in them.
    Folder,
}

/// Whether a stored tree is what it was.
#[derive(Debug)]
pub(super) enum Integrity {
    Intact,
    /// Same content, other times (a copied cache): the record to keep from now on.
    Touched(Vec<FileRecord>),
    /// What is wrong, for people.
    Damaged(String),
}

impl Cache {
    /// Keeps everything in `folder`, which is moved away. Fails on links that lead out of it and on special files.
    pub fn store_files(&self, folder: &Path) -> Result<Artifact, CacheError> {
        self.adopt_files(folder, None)
    }

    /// The same for files that have to have the digest `wanted` where there is one.
    pub(super) fn adopt_files(
        &self,
        folder: &Path,
        wanted: Option<&Digest>,
    ) -> Result<Artifact, CacheError> {
        let mut files = scan(folder)?;
        hash(folder, &mut files)?;
        let digest = tree_digest(&files);
        CacheError::other_content(wanted, digest)?;
        for file in &mut files {
            protect(folder, file)?;
        }
        let bytes = files.iter().map(|file| file.size).sum();
        let artifact = Artifact {
            kind: ArtifactKind::Files,
            digest,
            rows: None,
            bytes,
        };
        let target = self.layout.object(&digest);
        // One at a time: two nodes may give the same tree at once.
        let _one = self
            .adopting
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if fs::symlink_metadata(&target).is_ok() {
            match check(&target, &files)? {
                Integrity::Damaged(_) => {
                    let aside = self.layout.scratch();
                    fs::rename(&target, &aside)?;
                    self.take(folder, &target)?;
                    remove(&aside)?;
                }
                Integrity::Touched(present) => {
                    files = present;
                    remove(folder)?;
                }
                Integrity::Intact => remove(folder)?,
            }
        } else {
            self.take(folder, &target)?;
        }
        let mut index = self.index();
        index.add_record(Record {
            artifact: artifact.clone(),
            ordered: false,
            files,
        });
        index.unsaved.insert(digest);
        Ok(artifact)
    }

    /// Moves a folder to its place; across file systems by a copy that appears whole.
    fn take(&self, folder: &Path, target: &Path) -> Result<(), CacheError> {
        failpoint::hit("object.move")?;
        match fs::rename(folder, target) {
            Err(error) if error.kind() == std::io::ErrorKind::CrossesDevices => {
                let copy = self.layout.scratch();
                copy_tree(folder, &copy)?;
                fs::rename(&copy, target)?;
                remove(folder)?;
                Ok(())
            }
            Err(error) => Err(error.into()),
            Ok(()) => {
                failpoint::pass("object.moved");
                Ok(())
            }
        }
    }
}

pub(super) fn copy_tree(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    for item in fs::read_dir(from)? {
        let item = item?;
        let (source, target) = (item.path(), to.join(item.file_name()));
        let kind = item.file_type()?;
        if kind.is_dir() {
            copy_tree(&source, &target)?;
        } else if kind.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(&source)?, &target)?;
        } else {
            fs::copy(&source, &target)?;
            let times = std::fs::FileTimes::new().set_modified(fs::metadata(&source)?.modified()?);
            std::fs::File::open(&target)?.set_times(times)?;
        }
    }
    Ok(())
}

/// Everything in `folder`, sorted by path, not hashed yet.
pub(super) fn scan(folder: &Path) -> Result<Vec<FileRecord>, CacheError> {
    let mut files = Vec::new();
    let mut pending = vec![(folder.to_path_buf(), String::new())];
    while let Some((folder_now, prefix)) = pending.pop() {
        let mut empty = true;
        for item in fs::read_dir(&folder_now)? {
            let item = item?;
            empty = false;
            let refuse = |message: &str| CacheError::Files {
                path: item.path(),
                message: message.to_owned(),
            };
            let name = item
                .file_name()
                .into_string()
                .map_err(|_| refuse("has a name that is not UTF-8"))?;
            let path = format!("{prefix}{name}");
            let metadata = item.metadata()?;
            let (size, mtime) = (metadata.len(), mtime(&metadata));
            let kind = if metadata.is_dir() {
                pending.push((item.path(), format!("{path}/")));
                continue;
            } else if metadata.is_symlink() {
                let target = fs::read_link(item.path())?;
                if !stays_inside(&prefix, &target) || !item.path().exists() {
                    return Err(refuse(&format!(
                        "is a link to `{}`, which is not in the folder",
                        target.display()
                    )));
                }
                FileKind::Link
            } else if !metadata.is_file() {
                return Err(refuse("is neither a file nor a folder"));
            } else if metadata.permissions().mode() & 0o111 != 0 {
                FileKind::Executable
            } else {
                FileKind::File
            };
            files.push(FileRecord {
                path,
                kind,
                size,
                mtime,
                digest: Digest::of(""),
            });
        }
        if empty && !prefix.is_empty() {
            let path = prefix.trim_end_matches('/').to_owned();
            files.push(FileRecord {
                path,
                kind: FileKind::Folder,
                size: 0,
                mtime: 0,
                digest: Digest::of(""),
            });
        }
    }
    files.sort_by(|left, right| left.path.cmp(&right.path));
    Ok(files)
}

/// Whether a relative link in the folder `prefix` (empty, or ending in `/`) never climbs above the root.
fn stays_inside(prefix: &str, target: &Path) -> bool {
    let mut depth = prefix.matches('/').count() as i64;
    target.components().all(|component| {
        match component {
            Component::Normal(_) => depth += 1,
            Component::CurDir => {}
            Component::ParentDir => depth -= 1,
            Component::RootDir | Component::Prefix(_) => depth = -1,
        }
        depth >= 0
    })
}

pub(super) fn mtime(metadata: &std::fs::Metadata) -> i64 {
    metadata
        .mtime()
        .saturating_mul(1_000_000_000)
        .saturating_add(metadata.mtime_nsec())
}

fn hash(folder: &Path, files: &mut [FileRecord]) -> Result<(), CacheError> {
    let one = |file: &mut FileRecord| -> Result<(), CacheError> {
        let path = folder.join(&file.path);
        file.digest = match file.kind {
            FileKind::File | FileKind::Executable => file_digest(&path)?,
            FileKind::Link => Digest::of(fs::read_link(&path)?.as_os_str().as_encoded_bytes()),
            FileKind::Folder => Digest::of(""),
        };
        Ok(())
    };
    // Handing one small file to another thread costs more than hashing it.
    if files.len() < 4 {
        files.iter_mut().try_for_each(one)
    } else {
        files.par_iter_mut().try_for_each(one)
    }
}

/// BLAKE3 of a file's content.
pub(super) fn file_digest(path: &Path) -> std::io::Result<Digest> {
    let mut hasher = blake3::Hasher::new();
    if fs::metadata(path)?.len() >= LARGE {
        hasher.update_mmap_rayon(path)?;
    } else {
        hasher.update(&fs::read(path)?);
    }
    Ok(hasher.finalize().into())
}

pub(super) fn tree_digest(files: &[FileRecord]) -> Digest {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"flow files 1");
    for file in files {
        hasher.update(&(file.path.len() as u64).to_le_bytes());
        hasher.update(file.path.as_bytes());
        hasher.update(match file.kind {
            FileKind::File => b"f",
            FileKind::Executable => b"x",
            FileKind::Link => b"l",
            FileKind::Folder => b"d",
        });
        hasher.update(file.digest.as_bytes());
    }
    hasher.finalize().into()
}

/// Takes the write permission away, so that a stage cannot change its input by accident.
fn protect(folder: &Path, file: &FileRecord) -> std::io::Result<()> {
    let mode = match file.kind {
        FileKind::File => 0o444,
        FileKind::Executable => 0o555,
        FileKind::Link | FileKind::Folder => return Ok(()),
    };
    fs::set_permissions(
        folder.join(&file.path),
        std::fs::Permissions::from_mode(mode),
    )
}

/// Compares a stored tree with its record: by sizes and times, by content where these differ.
pub(super) fn check(folder: &Path, recorded: &[FileRecord]) -> Result<Integrity, CacheError> {
    let mut present = match scan(folder) {
        Ok(files) => files,
        Err(CacheError::Io(error)) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(Integrity::Damaged("is gone".to_owned()));
        }
        Err(CacheError::Files { message, .. }) => return Ok(Integrity::Damaged(message)),
        Err(error) => return Err(error),
    };
    let same_names = present.len() == recorded.len()
        && present
            .iter()
            .zip(recorded)
            .all(|(now, then)| now.path == then.path && now.kind == then.kind);
    if !same_names {
        return Ok(Integrity::Damaged(
            "has other files than it was stored with".to_owned(),
        ));
    }
    let mut touched = false;
    for (now, then) in present.iter_mut().zip(recorded) {
        if now.kind != FileKind::Folder && (now.size, now.mtime) != (then.size, then.mtime) {
            touched = true;
            hash(folder, std::slice::from_mut(now))?;
        } else {
            now.digest = then.digest;
        }
        if now.digest != then.digest {
            return Ok(Integrity::Damaged(format!(
                "`{}` has changed since it was stored",
                now.path
            )));
        }
    }
    Ok(if touched {
        Integrity::Touched(present)
    } else {
        Integrity::Intact
    })
}

/// The digest of a tree as it is now, whatever was recorded.
pub(super) fn rehash(folder: &Path) -> Result<Digest, CacheError> {
    let mut files = scan(folder)?;
    hash(folder, &mut files)?;
    Ok(tree_digest(&files))
}
