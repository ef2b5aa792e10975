//! Who may run on a cache: an advisory lock that is never unlinked, so that no second file of that name can be locked.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::CacheError;
use super::layout::Layout;

/// Who holds the lock, as written into it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    pub pid: u32,
    pub host: String,
    /// The run's id, or the command's name where there is no run.
    pub run: String,
    /// UTC, RFC 3339.
    pub since: String,
}

impl Holder {
    pub fn new(run: &str) -> Self {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname")
            .unwrap_or_default()
            .trim()
            .to_owned();
        Self {
            pid: std::process::id(),
            host,
            run: run.to_owned(),
            since: jiff::Timestamp::now()
                .strftime("%Y-%m-%dT%H:%M:%SZ")
                .to_string(),
        }
    }
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "run {} (process {} on {}, since {})",
            self.run, self.pid, self.host, self.since
        )
    }
}

/// Held while a run, `gc` or `verify` writes; released when dropped or when the process ends.
#[derive(Debug)]
pub struct RunLock {
    _file: File,
}

impl RunLock {
    /// Waits for the lock. `waiting` is called about ten times a second with the present holder (`None` where its name
    /// cannot be read) and gives up by returning `false`.
    pub fn acquire(
        cache: &Path,
        me: &Holder,
        mut waiting: impl FnMut(Option<&Holder>) -> bool,
    ) -> Result<Self, CacheError> {
        fs_err::create_dir_all(cache)?;
        let path = Layout::new(cache).lock();
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)?;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::Error(error)) => return Err(error.into()),
                Err(TryLockError::WouldBlock) => {
                    if !waiting(read(&mut file).as_ref()) {
                        return Err(CacheError::Interrupted);
                    }
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
        }
        file.set_len(0)?;
        file.rewind()?;
        file.write_all(
            serde_json::to_string(me)
                .map_err(std::io::Error::from)?
                .as_bytes(),
        )?;
        Ok(Self { _file: file })
    }
}

fn read(file: &mut File) -> Option<Holder> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_waits_and_learns_who_holds_it() {
        let folder = tempfile::tempdir().unwrap();
        let first = RunLock::acquire(folder.path(), &Holder::new("first"), |_| false).unwrap();
        let mut seen = Vec::new();
        let second = RunLock::acquire(folder.path(), &Holder::new("second"), |holder| {
            seen.push(holder.map(|holder| holder.run.clone()));
            seen.len() < 2
        });
        assert!(matches!(second, Err(CacheError::Interrupted)));
        assert_eq!(seen, [Some("first".to_owned()), Some("first".to_owned())]);
        drop(first);
        RunLock::acquire(folder.path(), &Holder::new("third"), |_| false).unwrap();
    }
}
