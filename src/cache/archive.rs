//! Zip archives as data: their digest is that of their members, whatever the container.

use std::io::Read;
use std::path::Path;

use rayon::prelude::*;
use zip::ZipArchive;

use super::ExternalError;
use super::external::{member, unreadable};
use crate::digest::Digest;

/// XML and text shrink 20 times at the very most; deflate allows 1,032 times.
const MAX_RATIO: u64 = 300;
/// Below this a large ratio does no harm.
const SMALL: u64 = 1 << 20;

/// Whether a member of `size` bytes, `packed` in the archive, is more likely an attack than data ("zip bomb").
pub(crate) fn expands_too_far(size: u64, packed: u64) -> bool {
    size > SMALL && size / packed.max(1) > MAX_RATIO
}

/// The digest of a zip archive: names and contents of its files in order of name, so that compression, times and the
/// order in the container do not matter. A single folder at the top (as code hosts put in) is left out of the names.
///
/// Members are hashed as they are unpacked, and none is unpacked beyond the size it announces.
pub fn archive_digest(path: &Path) -> Result<Digest, ExternalError> {
    let bytes = fs_err::read(path).map_err(|error| unreadable(path, error))?;
    let archive =
        ZipArchive::new(std::io::Cursor::new(&bytes[..])).map_err(|error| match error {
            zip::result::ZipError::Io(error) => unreadable(path, error),
            _ => broken(path, &"it has no directory at its end"),
        })?;
    let mut members = members(path, &archive, bytes.len() as u64)?;
    drop_shared_folder(&mut members);
    members.sort();
    let digests: Vec<Digest> = members
        .par_iter()
        .map_init(
            || archive.clone(),
            |archive, (_, index)| content(path, archive, *index),
        )
        .collect::<Result<_, _>>()?;
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"flow archive 1");
    for ((name, _), digest) in members.iter().zip(digests) {
        member(&mut hasher, name, &digest);
    }
    Ok(hasher.finalize().into())
}

type Bytes<'a> = std::io::Cursor<&'a [u8]>;

/// Names and positions of the files in an archive of `length` bytes.
fn members(
    path: &Path,
    archive: &ZipArchive<Bytes<'_>>,
    length: u64,
) -> Result<Vec<(String, usize)>, ExternalError> {
    let mut members = Vec::with_capacity(archive.len());
    let mut packed = 0_u64;
    for index in 0..archive.len() {
        let file = archive
            .by_index_data(index)
            .map_err(|error| broken(path, &error))?;
        if file.is_dir() {
            continue;
        }
        let name = file.name().map_err(|error| broken(path, &error))?;
        if expands_too_far(file.size(), file.compressed_size()) {
            return Err(ExternalError::Bomb {
                path: path.to_path_buf(),
                member: name.into_owned(),
                size: file.size(),
                packed: file.compressed_size(),
            });
        }
        packed = packed.saturating_add(file.compressed_size());
        members.push((name.into_owned(), index));
    }
    if packed > length {
        return Err(broken(path, &"its members share their bytes"));
    }
    Ok(members)
}

/// Archives of a repository have a top folder named after the commit; names must not depend on it.
fn drop_shared_folder(members: &mut [(String, usize)]) {
    let top = members
        .first()
        .and_then(|(name, _)| name.split_once('/'))
        .map(|(top, _)| format!("{top}/"));
    if let Some(top) = top
        && members.iter().all(|(name, _)| name.starts_with(&top))
    {
        for (name, _) in members {
            name.drain(..top.len());
        }
    }
}

/// The digest of one member.
fn content(
    path: &Path,
    archive: &mut ZipArchive<Bytes<'_>>,
    index: usize,
) -> Result<Digest, ExternalError> {
    let file = archive
        .by_index(index)
        .map_err(|error| broken(path, &error))?;
    let size = file.size();
    let mut hasher = blake3::Hasher::new();
    hasher
        .update_reader(file.take(size + 1))
        .map_err(|error| broken(path, &error))?;
    if hasher.count() > size {
        return Err(broken(path, &"a member is larger than it announces"));
    }
    Ok(hasher.finalize().into())
}

fn broken(path: &Path, error: &dyn std::fmt::Display) -> ExternalError {
    ExternalError::Archive {
        path: path.to_path_buf(),
        message: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use zip::write::SimpleFileOptions;

    use super::*;

    fn archive(path: &Path, members: &[(&str, &[u8])], method: zip::CompressionMethod) {
        let mut writer = zip::ZipWriter::new(std::fs::File::create(path).unwrap());
        for (name, content) in members {
            let options = SimpleFileOptions::default().compression_method(method);
            writer.start_file(*name, options).unwrap();
            writer.write_all(content).unwrap();
        }
        writer.finish().unwrap();
    }

    #[test]
    fn archives_are_what_is_in_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        archive(
            &path("a.zip"),
            &[("a.xml", b"1"), ("b/c.xml", b"2")],
            zip::CompressionMethod::Deflated,
        );
        archive(
            &path("b.zip"),
            &[("top-1/b/c.xml", b"2"), ("top-1/a.xml", b"1")],
            zip::CompressionMethod::Stored,
        );
        archive(
            &path("c.zip"),
            &[("a.xml", b"1"), ("b/c.xml", b"3")],
            zip::CompressionMethod::Stored,
        );
        let digest = |name: &str| archive_digest(&path(name)).unwrap();
        assert_eq!(digest("a.zip"), digest("b.zip"));
        assert_ne!(digest("a.zip"), digest("c.zip"));
    }

    #[test]
    fn an_archive_that_is_cut_off_or_expands_too_far_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.zip");
        let refused = || {
            archive_digest(&path)
                .unwrap_err()
                .to_string()
                .replace(&folder.path().display().to_string(), "")
        };
        archive(
            &path,
            &[("a.xml", b"1"), ("b.xml", b"2")],
            zip::CompressionMethod::Deflated,
        );
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 10]).unwrap();
        insta::assert_snapshot!(refused(), @"`/a.zip` is not a whole zip archive: it has no directory at its end");
        archive(
            &path,
            &[("a.xml", b"1"), ("zeros", &vec![0; 8 << 20])],
            zip::CompressionMethod::Deflated,
        );
        insta::assert_snapshot!(refused(), @"`zeros` in `/a.zip` unpacks to 1028 times its size, 8 MiB");
    }
}
