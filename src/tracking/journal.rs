//! The journal of a tracked run: everything there is to send, on disk before the run goes on.
//!
//! ```text
//! runs/<id>/tracking/
//! ├── run.json        see `Head`
//! ├── history.jsonl   see `Row`; the place of a line is its `_step`
//! ├── system.jsonl    lines of `wandb-events.jsonl`
//! ├── output.log      lines of the console
//! ├── files/          run files
//! ├── sent.json       see `Sent`
//! └── lock            held by whoever runs or sends
//! ```
//!
//! A run that continues another writes into that one's journal; its own `tracking` is a link there.

use std::collections::BTreeMap;
use std::fs::TryLockError;
use std::io;
use std::path::{Path, PathBuf};

use fs_err as fs;

use super::lines::{LineFile, beginning, last};
use super::number;
use super::row::{Row, object};

pub const HISTORY: &str = "history.jsonl";
pub const SYSTEM: &str = "system.jsonl";
pub const CONSOLE: &str = "output.log";
pub const FILES: &str = "files";

/// Longer lines are cut: a server takes 10 MiB, and nobody reads that.
const LONGEST_LINE: usize = 64 * 1024;

/// Where the journal of a run lies, in the folder of the run.
pub fn folder_of(run: &Path) -> PathBuf {
    run.join("tracking")
}

/// The right to write into a journal or to send it; ends with the process at the latest.
#[derive(Debug)]
pub struct Lock {
    _file: std::fs::File,
}

impl Lock {
    /// `None` where somebody else has it.
    pub fn take(folder: &Path) -> io::Result<Option<Self>> {
        let file = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(folder.join("lock"))?;
        let file = file.into_parts().0;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

/// The files that grow, open for writing.
#[derive(Debug)]
pub struct Journal {
    history: LineFile,
    system: LineFile,
    console: LineFile,
    /// Seconds that earlier attempts took.
    runtime: f64,
    since: std::time::Instant,
}

impl Journal {
    /// Opens the files in `folder`, or makes them; hands out each row there is.
    pub fn open(folder: &Path, row: impl FnMut(Row)) -> io::Result<Self> {
        fs::create_dir_all(folder.join(FILES))?;
        let history = LineFile::open(&folder.join(HISTORY))?;
        let system = LineFile::open(&folder.join(SYSTEM))?;
        let console = LineFile::open(&folder.join(CONSOLE))?;
        let runtime = last_runtime(folder, row)?;
        Ok(Self {
            history,
            system,
            console,
            runtime,
            since: std::time::Instant::now(),
        })
    }

    /// Seconds since the first start, without the time between attempts.
    pub fn runtime(&self) -> f64 {
        self.runtime + self.since.elapsed().as_secs_f64()
    }

    /// Adds a row of history; its step is its place.
    pub fn row(
        &mut self,
        series: String,
        at: u64,
        mut fields: BTreeMap<String, String>,
    ) -> io::Result<()> {
        fields.insert("_step".to_owned(), self.history.lines().to_string());
        self.stamp(&mut fields);
        let row = Row { series, at, fields };
        self.history.append(&serde_json::to_string(&row)?)
    }

    /// Adds a row of system metrics.
    pub fn system(&mut self, mut fields: BTreeMap<String, String>) -> io::Result<()> {
        self.stamp(&mut fields);
        fields.insert("_wandb".to_owned(), "true".to_owned());
        self.system.append(&object(&fields))
    }

    /// Adds what was said, with the time, line by line.
    pub fn console(&mut self, text: &str, is_error: bool) -> io::Result<()> {
        let time = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%6f");
        let prefix = if is_error { "ERROR " } else { "" };
        for line in text.lines() {
            let shown = beginning(line, LONGEST_LINE);
            let mark = if shown.len() < line.len() {
                "… (cut)"
            } else {
                ""
            };
            self.console
                .append(&format!("{prefix}{time} {shown}{mark}"))?;
        }
        Ok(())
    }

    /// Handles to all files, to sync them.
    pub fn handles(&self) -> io::Result<[fs::File; 3]> {
        Ok([
            self.history.handle()?,
            self.system.handle()?,
            self.console.handle()?,
        ])
    }

    fn stamp(&self, fields: &mut BTreeMap<String, String>) {
        fields.insert("_runtime".to_owned(), number::seconds(self.runtime()));
        fields.insert("_timestamp".to_owned(), number::seconds(now()));
    }
}

/// Unix seconds.
pub fn now() -> f64 {
    jiff::Timestamp::now().as_duration().as_secs_f64()
}

/// Hands out each row; the latest runtime of any line.
fn last_runtime(folder: &Path, mut row: impl FnMut(Row)) -> io::Result<f64> {
    let mut runtime = 0.0_f64;
    let mut reader = super::lines::LineReader::open(&folder.join(HISTORY))?;
    while let Some(line) = reader.next()? {
        let parsed: Row = serde_json::from_str(&line)?;
        runtime = runtime.max(parsed.runtime());
        row(parsed);
    }
    if let Some(line) = last(&folder.join(SYSTEM))? {
        let fields: serde_json::Value = serde_json::from_str(&line)?;
        runtime = runtime.max(fields["_runtime"].as_f64().unwrap_or_default());
    }
    Ok(runtime)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(value: &str) -> BTreeMap<String, String> {
        BTreeMap::from([("x".to_owned(), value.to_owned())])
    }

    #[test]
    fn steps_and_runtime_go_on_in_the_next_process() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(folder.path(), |_| panic!("there is no row yet")).unwrap();
        journal.row("a".into(), 1, fields("NaN")).unwrap();
        journal.runtime = 100.0;
        journal.row("a".into(), 2, fields("2")).unwrap();
        drop(journal);
        // Killed in the middle of a row.
        let path = folder.path().join(HISTORY);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.extend_from_slice(br#"{"series":"a","at":3,"fie"#);
        std::fs::write(&path, bytes).unwrap();

        let mut rows = Vec::new();
        let mut journal = Journal::open(folder.path(), |row| rows.push(row)).unwrap();
        assert_eq!(rows.len(), 2);
        assert_eq!(rows[0].fields["x"], "NaN");
        assert!(journal.runtime() >= 100.0);
        journal.row("a".into(), 3, fields("3")).unwrap();
        journal.system(fields("1")).unwrap();
        drop(journal);
        let mut steps = Vec::new();
        let journal = Journal::open(folder.path(), |row| {
            steps.push(row.fields["_step"].clone());
        });
        assert!(journal.unwrap().runtime() >= 100.0);
        assert_eq!(steps, ["0", "1", "2"]);
    }

    #[test]
    fn console_lines_are_single_and_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(folder.path(), |_| ()).unwrap();
        journal
            .console(&format!("one\ntwo {}", "é".repeat(LONGEST_LINE)), true)
            .unwrap();
        let text = std::fs::read_to_string(folder.path().join(CONSOLE)).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 2);
        assert!(lines[0].starts_with("ERROR 20") && lines[0].ends_with(" one"));
        assert!(lines[1].len() < LONGEST_LINE + 100 && lines[1].ends_with("… (cut)"));
    }

    #[test]
    fn one_process_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let lock = Lock::take(folder.path()).unwrap();
        assert!(lock.is_some());
        assert!(Lock::take(folder.path()).unwrap().is_none());
        drop(lock);
        assert!(Lock::take(folder.path()).unwrap().is_some());
    }
}
