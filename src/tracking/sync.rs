//! Sends what a run left behind.

use std::path::{Path, PathBuf};

use reqwest::Url;

use super::failure::{Backoff, Failure};
use super::head::Head;
use super::journal::{HISTORY, Lock, folder_of};
use super::lines::LineFile;
use super::live::{Pace, share};
use super::sender::{Sender, Step};
use super::sent::Sent;
use super::settings::ApiKey;
use super::upload;
use crate::digest::Digest;

/// Failures in a row until it is no use.
const ATTEMPTS: u32 = 5;

/// What there is and what a server has of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// Rows of history.
    pub rows: u64,
    pub acknowledged: u64,
    /// Whether anything at all is left to send.
    pub is_pending: bool,
}

/// Looks at a journal nobody writes to.
pub fn progress(folder: &Path, base_url: &Url) -> Result<Progress, Failure> {
    let head = Head::read(folder)?;
    let sent = Sent::read(folder, base_url)?;
    let count = |name: &str| LineFile::open(&folder.join(name)).map(|file| file.lines());
    let rows = count(HISTORY)?;
    let is_pending = sent.history < rows
        || sent.system < count(super::journal::SYSTEM)?
        || sent.console < count(super::journal::CONSOLE)?
        || sent.config != Some(Digest::of(head.config_document().to_string()))
        || head.exit_code.is_some() && sent.completed != Some(head.attempts)
        || !upload::missing(
            folder,
            &Sent {
                left_out: Default::default(),
                ..sent.clone()
            },
            &[],
        )?
        .is_empty();
    Ok(Progress {
        rows,
        acknowledged: sent.history.min(rows),
        is_pending,
    })
}

/// Sends everything, and what it was all about where it has ended. A run that died is left open: its end is not known.
pub fn sync(folder: &Path, base_url: &Url, key: &ApiKey, pace: Pace) -> Result<Sent, Failure> {
    let mut sender = Sender::open(folder, base_url, key)?;
    sender.set_refused(None)?;
    let mut backoff = Backoff::new(pace.first_retry, pace.last_retry);
    let mut failures = 0;
    loop {
        match sender.step() {
            Ok(Step::More) => {
                failures = 0;
                backoff.reset();
            }
            Ok(Step::Idle | Step::Done) => return Ok(sender.sent().clone()),
            Err(failure) if failure.is_passing() && failures + 1 < ATTEMPTS => {
                failures += 1;
                let wait = match failure {
                    Failure::Busy {
                        after: Some(after), ..
                    } => after,
                    _ => backoff.next(share()),
                };
                std::thread::sleep(wait);
            }
            Err(failure) => return Err(failure),
        }
    }
}

/// The journals of all runs, the oldest first; a run that continues another has none of its own.
pub fn journals(runs: &Path) -> std::io::Result<Vec<PathBuf>> {
    let entries = match fs_err::read_dir(runs) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut folders = Vec::new();
    for entry in entries {
        let folder = folder_of(&entry?.path());
        if folder.join("run.json").is_file() && !folder.is_symlink() {
            folders.push(folder);
        }
    }
    folders.sort();
    Ok(folders)
}

/// The journal of the latest run that asked for the same at the same place, if that did not finish and is not on: a run that
/// asks again goes on there.
pub fn unfinished(
    runs: &Path,
    is_same: impl Fn(&Head) -> bool,
) -> std::io::Result<Option<(PathBuf, Head, Lock)>> {
    for folder in journals(runs)?.into_iter().rev() {
        // One that cannot be read is nobody's.
        let Ok(head) = Head::read(&folder) else {
            continue;
        };
        if !is_same(&head) {
            continue;
        }
        if head.is_finished() {
            return Ok(None);
        }
        return Ok(Lock::take(&folder)?.map(|lock| (folder, head, lock)));
    }
    Ok(None)
}
