//! What happens in a task, written there as lines and read here as they grow.

use std::collections::HashMap;
use std::fs::File;
use std::io::{ErrorKind, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::folder::TaskFolder;
use crate::engine::{Event, Sink};

/// Adds events to a file. They reach it when [`EventLog::flush`] is called, and at the end.
pub(super) struct EventLog {
    file: Mutex<(File, Vec<u8>)>,
}

impl EventLog {
    pub(super) fn open(path: &Path) -> std::io::Result<Self> {
        let file = File::options().append(true).create(true).open(path)?;
        Ok(Self {
            file: Mutex::new((file, Vec::new())),
        })
    }

    pub(super) fn flush(&self) {
        let mut guard = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let (file, pending) = &mut *guard;
        // Where it cannot be written, the run misses what it says; its results do not depend on it.
        let _ = file.write_all(pending);
        pending.clear();
    }
}

impl Sink for EventLog {
    fn event(&self, event: &Event) {
        let mut guard = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if serde_json::to_writer(&mut guard.1, event).is_ok() {
            guard.1.push(b'\n');
        }
    }
}

/// Files that grow line by line, each read on from where it was.
#[derive(Default)]
pub(super) struct Tails {
    offsets: HashMap<PathBuf, u64>,
}

impl Tails {
    /// The new whole lines of one file of all tries at a task.
    pub(super) fn lines(&mut self, task: &TaskFolder, file: &str) -> std::io::Result<Vec<String>> {
        let mut lines = Vec::new();
        for attempt in task.attempts()? {
            lines.extend(self.read(task.attempt(&attempt).join(file))?);
        }
        Ok(lines)
    }

    fn read(&mut self, path: PathBuf) -> std::io::Result<Vec<String>> {
        let mut file = match File::open(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            file => file?,
        };
        let offset = self.offsets.entry(path).or_insert(0);
        if file.metadata()?.len() <= *offset {
            return Ok(Vec::new());
        }
        file.seek(SeekFrom::Start(*offset))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        // The rest of the last line may not be there yet.
        let whole = bytes
            .iter()
            .rposition(|&byte| byte == b'\n')
            .map_or(0, |at| at + 1);
        *offset += whole as u64;
        let text = String::from_utf8_lossy(&bytes[..whole]);
        Ok(text.lines().map(str::to_owned).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_once_and_whole() {
        let folder = tempfile::tempdir().unwrap();
        let task = TaskFolder {
            root: folder.path().to_owned(),
        };
        std::fs::create_dir(folder.path().join("1")).unwrap();
        let path = folder.path().join("1/answers.jsonl");
        let mut tails = Tails::default();
        let mut read = || tails.lines(&task, "answers.jsonl").unwrap();
        assert!(read().is_empty());
        std::fs::write(&path, "a\nb\nc").unwrap();
        assert_eq!(read(), ["a", "b"]);
        assert!(read().is_empty());
        std::fs::write(&path, "a\nb\ncd\n").unwrap();
        assert_eq!(read(), ["cd"]);
        // Another try, which began anew.
        std::fs::create_dir(folder.path().join("2")).unwrap();
        std::fs::write(folder.path().join("2/answers.jsonl"), "e\n").unwrap();
        assert_eq!(read(), ["e"]);
    }
}
