//! Where things lie in a job's folder, and how they are read and written.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use fs_err as fs;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::job::Given;
use crate::atomic;
use crate::cache::FAILED_JOB;

#[derive(Debug, Clone)]
pub struct JobFolder {
    root: PathBuf,
}

/// How a task ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// The try that wrote it.
    pub attempt: String,
    pub host: String,
    pub ended: Ended,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    Done {
        outputs: BTreeMap<String, Left>,
        metrics: BTreeMap<String, f64>,
    },
    Failed {
        message: String,
        help: Option<String>,
    },
}

/// An output, and where it lies in the job's folder.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Left {
    #[serde(flatten)]
    pub given: Given,
    pub place: PathBuf,
}

impl JobFolder {
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn exists(&self) -> bool {
        self.job().is_file()
    }

    pub fn job(&self) -> PathBuf {
        self.root.join("job.json")
    }

    pub fn input(&self, port: &str) -> PathBuf {
        self.root.join("inputs").join(format!("{port}.parquet"))
    }

    pub fn items(&self, task: u32) -> PathBuf {
        self.root.join("parts").join(format!("{task}.jsonl"))
    }

    pub fn submission(&self) -> PathBuf {
        self.root.join("submission.json")
    }

    /// Locked while it is given to a scheduler, by whoever does that.
    pub fn script(&self) -> PathBuf {
        self.root.join("job.sh")
    }

    pub fn logs(&self) -> PathBuf {
        self.root.join("log")
    }

    pub fn task(&self, task: u32) -> TaskFolder {
        TaskFolder {
            root: self.root.join("tasks").join(task.to_string()),
        }
    }

    /// Puts the folder where no run finds it, without all that is large: people find there what the job printed, until the
    /// node has a result or `flow cache gc` clears it away.
    pub(super) fn set_aside(&self) -> std::io::Result<()> {
        let aside = self.aside();
        remove(&aside.root)?;
        fs::rename(&self.root, &aside.root)?;
        // Tries that are still at work end when they no longer find their folder.
        ["inputs", "parts", "tasks"]
            .iter()
            .try_for_each(|name| remove(&aside.root.join(name)))
    }

    /// Where the folder is once the job has failed.
    pub(super) fn aside(&self) -> Self {
        Self::new(self.root.with_extension(FAILED_JOB))
    }

    /// Removes everything; what is half removed is no job any more.
    pub fn remove(&self) -> std::io::Result<()> {
        match fs::remove_file(self.job()) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        remove(&self.root)
    }
}

#[derive(Debug, Clone)]
pub struct TaskFolder {
    pub(super) root: PathBuf,
}

impl TaskFolder {
    pub(super) fn owner(&self) -> PathBuf {
        self.root.join("owner")
    }

    fn result(&self) -> PathBuf {
        self.root.join("result.json")
    }

    pub(super) fn attempt(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The try that may write; `None` before the first.
    pub(super) fn owned_by(&self) -> std::io::Result<Option<String>> {
        read(&self.owner())
    }

    pub(super) fn own(&self, attempt: &str) -> std::io::Result<()> {
        atomic::write_durable(&self.owner(), attempt.as_bytes())
    }

    /// All tries so far, by name.
    pub(super) fn attempts(&self) -> std::io::Result<Vec<String>> {
        let items = match fs::read_dir(&self.root) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            items => items?,
        };
        let mut names = Vec::new();
        for item in items {
            let item = item?;
            if item.file_type()?.is_dir() {
                names.extend(item.file_name().into_string());
            }
        }
        names.sort();
        Ok(names)
    }

    /// How the task ended, once it has.
    pub fn report(&self) -> std::io::Result<Option<Report>> {
        let text = read(&self.result())?;
        // It appears whole; one that is not readable is another version's.
        Ok(text.and_then(|text| serde_json::from_str(&text).ok()))
    }

    pub(super) fn finish(&self, report: &Report) -> std::io::Result<()> {
        atomic::write_durable(&self.result(), &serde_json::to_vec(report)?)
    }

    pub fn forget_report(&self) -> std::io::Result<()> {
        match fs::remove_file(self.result()) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// What the present try last said of being alive; another text later means that it still is.
    pub fn pulse(&self) -> std::io::Result<Option<String>> {
        let Some(owner) = self.owned_by()? else {
            return Ok(None);
        };
        let beat = read(&self.attempt(&owner).join("alive"))?;
        Ok(beat.map(|beat| format!("{owner} {beat}")))
    }

    /// Whether the present try has ended before its work was done, because it was asked to.
    pub(super) fn has_stopped(&self) -> std::io::Result<bool> {
        let owner = self.owned_by()?;
        Ok(owner.is_some_and(|owner| self.attempt(&owner).join("stopped").exists()))
    }
}

pub(super) fn read(path: &Path) -> std::io::Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// A JSON file, if it is there.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> std::io::Result<Option<T>> {
    read(path)?
        .map(|text| serde_json::from_str(&text))
        .transpose()
        .map_err(|error| {
            let message = format!("`{}` is damaged: {error}", path.display());
            std::io::Error::new(ErrorKind::InvalidData, message)
        })
}

pub(super) fn remove(path: &Path) -> std::io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The end of what a process printed; one that never started has printed nothing.
pub fn last_lines(path: &Path, count: usize) -> Vec<String> {
    let text = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let tail = &lines[lines.len().saturating_sub(count)..];
    tail.iter().map(|line| (*line).to_owned()).collect()
}
