//! The files of a zip archive or a folder, by name, readable from several threads at once.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use zip::ZipArchive;

use crate::cache::expands_too_far;
use crate::config::display;
use crate::ops::OpError;

/// The largest file that is read whole.
const MAX_BYTES: u64 = 256 << 20;

/// Files below one folder or in one archive, sorted by name.
pub struct Members {
    path: PathBuf,
    archive: Option<ZipArchive<Window>>,
    list: Vec<Member>,
}

pub struct Member {
    /// The path from the folder or archive's top, without a top folder that all files share; `/` between parts.
    pub name: String,
    pub bytes: u64,
    at: At,
}

enum At {
    Index(usize),
    Path(PathBuf),
}

/// Reads members; each thread has its own.
#[derive(Clone)]
pub struct Handle(Option<ZipArchive<Window>>);

impl Members {
    /// Lists the files whose name ends with `suffix` (`.xml`), in a folder and its folders or in a zip archive; one such
    /// file alone is a list of one.
    ///
    /// # Errors
    /// An archive that cannot be read, or whose names lead outside of it.
    pub fn list(path: &Path, suffix: &str) -> Result<Self, OpError> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let (archive, mut list) = if path.is_dir() {
            let mut list = Vec::new();
            walk(path, "", suffix, &mut list)?;
            (None, list)
        } else if name.ends_with(suffix) {
            let bytes = fs_err::metadata(path)?.len();
            let at = At::Path(path.to_owned());
            (
                None,
                vec![Member {
                    name: name.into_owned(),
                    bytes,
                    at,
                }],
            )
        } else {
            let archive = open(path)?;
            let list = entries(path, &archive, suffix)?;
            (Some(archive), list)
        };
        drop_shared_folder(&mut list);
        list.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Self {
            path: path.to_owned(),
            archive,
            list,
        })
    }

    pub fn as_slice(&self) -> &[Member] {
        &self.list
    }

    pub fn handle(&self) -> Handle {
        Handle(self.archive.clone())
    }

    /// The content of a member.
    ///
    /// # Errors
    /// Content that is damaged, encrypted, or larger than it may be.
    pub fn read(&self, handle: &mut Handle, member: &Member) -> Result<Vec<u8>, OpError> {
        let place = || format!("`{}` in `{}`", member.name, display(&self.path));
        if member.bytes > MAX_BYTES {
            return Err(OpError::new(format!(
                "{} is {} MiB large; at most {} MiB are read",
                place(),
                member.bytes >> 20,
                MAX_BYTES >> 20
            )));
        }
        let mut bytes = Vec::with_capacity(member.bytes as usize);
        let mut fill =
            |source: &mut dyn Read| source.take(member.bytes + 1).read_to_end(&mut bytes);
        let done = match (&member.at, &mut handle.0) {
            (At::Index(index), Some(archive)) => {
                let mut entry = archive
                    .by_index(*index)
                    .map_err(|error| damaged(&place(), &error.into()))?;
                fill(&mut entry)
            }
            (At::Path(path), _) => File::open(path).and_then(|mut file| fill(&mut file)),
            (At::Index(_), None) => Err(io::Error::other("the archive is not open")),
        };
        done.map_err(|error| damaged(&place(), &error))?;
        if bytes.len() as u64 > member.bytes {
            return Err(OpError::new(format!(
                "{} is larger than the {} bytes that are announced",
                place(),
                member.bytes
            )));
        }
        Ok(bytes)
    }
}

fn damaged(place: &str, error: &io::Error) -> OpError {
    OpError::with_help(
        format!("{place} cannot be read: {error}"),
        "the archive is damaged; get it again",
    )
}

fn open(path: &Path) -> Result<ZipArchive<Window>, OpError> {
    let window = Window::open(path)
        .map_err(|error| OpError::new(format!("`{}` cannot be opened: {error}", display(path))))?;
    ZipArchive::new(window).map_err(|error| {
        let why = match error {
            zip::result::ZipError::Io(error) => error.to_string(),
            _ => "it has no directory at its end".to_owned(),
        };
        let message = format!("`{}` is not a whole zip archive: {why}", display(path));
        OpError::with_help(
            message,
            "it may be cut off, or be no zip archive at all; get it again",
        )
    })
}

fn entries(
    path: &Path,
    archive: &ZipArchive<Window>,
    suffix: &str,
) -> Result<Vec<Member>, OpError> {
    let refuse = |name: &str, why: String| {
        let message = format!("`{name}` in `{}` {why}", display(path));
        Err(OpError::with_help(
            message,
            "the archive is not what it seems; check where it comes from",
        ))
    };
    let mut list = Vec::new();
    for index in 0..archive.len() {
        let entry = archive
            .by_index_data(index)
            .map_err(|error| damaged(&display(path), &error.into()))?;
        let raw = entry
            .name()
            .map_err(|error| damaged(&display(path), &error.into()))?;
        let outside = raw.starts_with('/')
            || raw.contains(['\\', '\0'])
            || raw.split('/').any(|part| part == "..");
        if outside {
            return refuse(&raw, "leads outside of the archive".to_owned());
        }
        if entry.is_dir() || !raw.ends_with(suffix) {
            continue;
        }
        let (bytes, packed) = (entry.size(), entry.compressed_size());
        if expands_too_far(bytes, packed) {
            return refuse(
                &raw,
                format!(
                    "unpacks to {} times its size, {} MiB",
                    bytes / packed.max(1),
                    bytes >> 20
                ),
            );
        }
        let name = raw.trim_start_matches("./").to_owned();
        list.push(Member {
            name,
            bytes,
            at: At::Index(index),
        });
    }
    Ok(list)
}

/// The names of all files below a folder, from there, sorted.
pub fn files(folder: &Path) -> Result<Vec<String>, OpError> {
    let mut list = Vec::new();
    walk(folder, "", "", &mut list)?;
    let mut names: Vec<String> = list.into_iter().map(|member| member.name).collect();
    names.sort();
    Ok(names)
}

fn walk(folder: &Path, prefix: &str, suffix: &str, list: &mut Vec<Member>) -> Result<(), OpError> {
    for entry in fs_err::read_dir(folder)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        let (path, kind) = (entry.path(), entry.file_type()?);
        let full = format!("{prefix}{name}");
        if kind.is_dir() {
            walk(&path, &format!("{full}/"), suffix, list)?;
        } else if name.ends_with(suffix) {
            // Follows a link to a file, never one to a folder.
            let metadata = fs_err::metadata(&path)?;
            if metadata.is_file() {
                list.push(Member {
                    name: full,
                    bytes: metadata.len(),
                    at: At::Path(path),
                });
            }
        }
    }
    Ok(())
}

/// Archives of a repository have a top folder named after the commit; names must not depend on it.
fn drop_shared_folder(list: &mut [Member]) {
    let Some(top) = list
        .first()
        .and_then(|member| member.name.split_once('/'))
        .map(|(top, _)| format!("{top}/"))
    else {
        return;
    };
    let nested = |member: &Member| {
        member
            .name
            .strip_prefix(&top)
            .is_some_and(|rest| rest.contains('/'))
    };
    if list.iter().all(nested) {
        for member in list {
            member.name.drain(..top.len());
        }
    }
}

/// A view of a file with a place and a buffer of its own, so that clones read side by side from one descriptor.
struct Window {
    file: Arc<File>,
    length: u64,
    position: u64,
    buffer: Vec<u8>,
    buffer_start: u64,
}

const BUFFER: usize = 32 << 10;

impl Window {
    fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        Ok(Self {
            file: Arc::new(file),
            length,
            position: 0,
            buffer: Vec::new(),
            buffer_start: 0,
        })
    }
}

impl Clone for Window {
    fn clone(&self) -> Self {
        Self {
            file: self.file.clone(),
            length: self.length,
            position: self.position,
            buffer: Vec::new(),
            buffer_start: 0,
        }
    }
}

impl Read for Window {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let buffered = self.buffer_start..self.buffer_start + self.buffer.len() as u64;
        if !buffered.contains(&self.position) {
            self.buffer.resize(BUFFER, 0);
            let count = self.file.read_at(&mut self.buffer, self.position)?;
            self.buffer.truncate(count);
            self.buffer_start = self.position;
        }
        let rest = &self.buffer[(self.position - self.buffer_start) as usize..];
        let count = rest.len().min(into.len());
        into[..count].copy_from_slice(&rest[..count]);
        self.position += count as u64;
        Ok(count)
    }
}

impl Seek for Window {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.length.checked_add_signed(by),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
        };
        self.position = target
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "seek before the start"))?;
        Ok(self.position)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use zip::write::SimpleFileOptions;

    use super::*;

    fn zip(files: &[(&str, &[u8])]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.zip");
        let mut writer = zip::ZipWriter::new(File::create(&path).unwrap());
        for (name, content) in files {
            writer
                .start_file(*name, SimpleFileOptions::default())
                .unwrap();
            writer.write_all(content).unwrap();
        }
        writer.finish().unwrap();
        (folder, path)
    }

    fn names(path: &Path) -> Vec<String> {
        Members::list(path, ".xml")
            .unwrap()
            .as_slice()
            .iter()
            .map(|member| member.name.clone())
            .collect()
    }

    fn message(path: &Path) -> String {
        let failed = Members::list(path, ".xml").and_then(|members| {
            let mut handle = members.handle();
            members
                .as_slice()
                .iter()
                .try_for_each(|member| members.read(&mut handle, member).map(drop))
        });
        failed
            .unwrap_err()
            .to_string()
            .replace(&path.parent().unwrap().display().to_string(), "")
    }

    #[test]
    fn a_zip_and_its_folder_list_the_same() {
        let (folder, path) = zip(&[
            ("top/b/2.xml", b"2"),
            ("top/a/1.xml", b"1"),
            ("top/b/readme.txt", b""),
        ]);
        assert_eq!(names(&path), ["a/1.xml", "b/2.xml"]);
        let unpacked = folder.path().join("unpacked");
        zip::ZipArchive::new(File::open(&path).unwrap())
            .unwrap()
            .extract(&unpacked)
            .unwrap();
        assert_eq!(names(&unpacked), ["a/1.xml", "b/2.xml"]);
        let members = Members::list(&path, ".xml").unwrap();
        let mut handle = members.handle();
        assert_eq!(
            members.read(&mut handle, &members.as_slice()[1]).unwrap(),
            b"2"
        );
    }

    #[test]
    fn a_cut_or_damaged_archive_is_refused() {
        let (_folder, path) = zip(&[("a.xml", &[b'x'; 4000]), ("b.xml", &[b'y'; 4000])]);
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 30]).unwrap();
        insta::assert_snapshot!(message(&path), @"`/a.zip` is not a whole zip archive: it has no directory at its end");
        let mut damaged = whole.clone();
        damaged[40] ^= 0xff;
        std::fs::write(&path, &damaged).unwrap();
        insta::assert_snapshot!(message(&path), @"`a.xml` in `/a.zip` cannot be read: corrupt deflate stream");
    }

    #[test]
    fn a_hostile_archive_is_refused() {
        let (_folder, path) = zip(&[("../../etc/evil.xml", b"x")]);
        insta::assert_snapshot!(message(&path), @"`../../etc/evil.xml` in `/a.zip` leads outside of the archive");
        let (_folder, path) = zip(&[("bomb.xml", &vec![0; 8 << 20])]);
        insta::assert_snapshot!(message(&path), @"`bomb.xml` in `/a.zip` unpacks to 1028 times its size, 8 MiB");
    }

    #[test]
    fn survives_damage() {
        let (_folder, path) = zip(&[("a/1.xml", b"<a/>"), ("b/2.xml", &[b'y'; 400])]);
        let seed = std::fs::read(path).unwrap();
        crate::fuzz::survives(&[seed], |bytes| {
            let file = tempfile::Builder::new().suffix(".zip").tempfile().unwrap();
            std::fs::write(file.path(), bytes).unwrap();
            if let Ok(members) = Members::list(file.path(), ".xml") {
                let mut handle = members.handle();
                for member in members.as_slice() {
                    let _ = members.read(&mut handle, member);
                }
            }
        });
    }
}
