//! A second copy of what only the database knows of files and verdicts; from it a damaged database is made anew.
//!
//! `ledger.jsonl` gets a line for each entry and each group of verdicts just before they are committed: one that is not, as
//! flow was killed, is as good, since its files are in place. Tables lie in the database alone and are lost with it: their
//! nodes run again.

use std::collections::HashMap;
use std::fmt;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::sync::Arc;

use fs_err as fs;
use serde::{Deserialize, Serialize};

use super::committer::Change;
use super::index::{Entry, Record};
use super::layout::Layout;
use super::objects::{Integrity, check};
use super::{CacheError, Verdict};
use crate::config::ArtifactKind;
use crate::digest::Digest;
use crate::failpoint;
use crate::graph::Fingerprint;

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Line {
    Entry {
        entry: Box<Entry>,
        manifest: String,
        /// Of artifacts that were new with this entry.
        records: Vec<Record>,
    },
    Verdicts(Vec<(Digest, Verdict)>),
}

/// What was taken over into a new database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// Where the damaged file is now; `None` where there was no file.
    pub aside: Option<PathBuf>,
    /// What is wrong with it.
    pub problem: String,
    pub entries: usize,
    pub verdicts: usize,
}

impl fmt::Display for Recovered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            entries,
            verdicts,
            problem,
            ..
        } = self;
        write!(
            f,
            "the cache's database was damaged ({problem}) and was made anew; "
        )?;
        if let Some(aside) = &self.aside {
            write!(f, "the old one is `{}`; ", aside.display())?;
        }
        write!(
            f,
            "{entries} results in files and {verdicts} verdicts were taken over, nodes that gave tables run again"
        )
    }
}

/// What a ledger holds that can still be used.
#[derive(Debug, Default)]
pub(super) struct Contents {
    pub(super) entries: Vec<Change>,
    pub(super) verdicts: Vec<(Digest, Verdict)>,
}

/// Adds the entries among changes.
pub(super) fn add_entries(layout: &Layout, changes: &[Change]) -> std::io::Result<()> {
    let line = |change: &Change| match change {
        Change::Entry {
            entry,
            manifest,
            records,
            ..
        } => Some(Line::Entry {
            entry: Box::new((**entry).clone()),
            manifest: manifest.clone(),
            records: records.iter().map(|record| (**record).clone()).collect(),
        }),
        Change::Record(_) | Change::Latest { .. } => None,
    };
    append(layout, &changes.iter().filter_map(line).collect::<Vec<_>>())
}

pub(super) fn add_verdicts(
    layout: &Layout,
    verdicts: Vec<(Digest, Verdict)>,
) -> std::io::Result<()> {
    append(layout, &[Line::Verdicts(verdicts)])
}

fn append(layout: &Layout, lines: &[Line]) -> std::io::Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    let mut bytes = Vec::new();
    for line in lines {
        serde_json::to_writer(&mut bytes, line)?;
        bytes.push(b'\n');
    }
    let mut file = fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(layout.ledger())?;
    failpoint::hit("ledger.write")?;
    // In one write, and not synced: a copy may lack its last lines, and half a line is passed over.
    file.write_all(&bytes)
}

fn lines(layout: &Layout) -> std::io::Result<Vec<Line>> {
    let file = match fs::File::open(layout.ledger()) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut lines = Vec::new();
    for line in BufReader::new(file).split(b'\n') {
        // Half a line of a killed process, or one of another version.
        lines.extend(serde_json::from_slice(&line?).ok());
    }
    Ok(lines)
}

/// Entries all of whose outputs are files that are there and intact, and all verdicts.
pub(super) fn read(layout: &Layout) -> Result<Contents, CacheError> {
    let mut records: HashMap<Digest, Arc<Record>> = HashMap::new();
    let mut entries: Vec<(Entry, String)> = Vec::new();
    let mut known: HashMap<Fingerprint, usize> = HashMap::new();
    let mut contents = Contents::default();
    for line in lines(layout)? {
        match line {
            Line::Verdicts(verdicts) => contents.verdicts.extend(verdicts),
            Line::Entry {
                entry,
                manifest,
                records: new,
            } => {
                let new = new.into_iter().map(Arc::new);
                records.extend(new.map(|record| (record.artifact.digest, record)));
                let entry = *entry;
                let place = *known.entry(entry.fingerprint).or_insert(entries.len());
                if place < entries.len() {
                    entries[place] = (entry, manifest);
                } else {
                    entries.push((entry, manifest));
                }
            }
        }
    }
    for (entry, manifest) in entries {
        let mut needed = Vec::new();
        for artifact in entry.outputs.values() {
            let record = records.get(&artifact.digest);
            match record {
                Some(record) if artifact.kind == ArtifactKind::Files => {
                    match check(&layout.object(&artifact.digest), &record.files)? {
                        Integrity::Damaged(_) => break,
                        Integrity::Intact | Integrity::Touched(_) => needed.push(record.clone()),
                    }
                }
                _ => break,
            }
        }
        if needed.len() == entry.outputs.len() {
            contents.entries.push(Change::Entry {
                seq: contents.entries.len() as i64,
                entry: Arc::new(entry),
                manifest,
                records: needed,
                ran: true,
            });
        }
    }
    Ok(contents)
}

/// Leaves out entries that are not kept.
pub(super) fn retain(layout: &Layout, keep: impl Fn(&Fingerprint) -> bool) -> std::io::Result<()> {
    let lines = lines(layout)?;
    if lines.is_empty() {
        return Ok(());
    }
    let mut bytes = Vec::new();
    for line in &lines {
        if let Line::Entry { entry, .. } = line
            && !keep(&entry.fingerprint)
        {
            continue;
        }
        serde_json::to_writer(&mut bytes, line)?;
        bytes.push(b'\n');
    }
    crate::atomic::write(&layout.ledger(), &bytes)
}
