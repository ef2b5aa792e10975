//! Files that appear whole: readers see the old content or the new, never a part.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::failpoint;

/// Writes beside `path` and renames.
pub fn write(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    replace(path, bytes, false)
}

/// Likewise, and what replaces the old content is on the disk before it does: not even a power cut leaves a part.
pub fn write_durable(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    replace(path, bytes, true)
}

fn replace(path: &Path, bytes: &[u8], durable: bool) -> std::io::Result<()> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    // As readable as any new file; temporary files are private by default.
    let permissions = std::fs::Permissions::from_mode(0o666);
    let mut file = tempfile::Builder::new()
        .permissions(permissions)
        .tempfile_in(folder)?;
    file.write_all(bytes)?;
    if durable {
        file.as_file().sync_data()?;
    }
    failpoint::hit("atomic.rename")?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}
