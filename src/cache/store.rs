//! The cache itself: open, look up, commit, close.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fs_err as fs;

use super::committer::{self, Change, Committer, now};
use super::database::{Database, LITTLE_PATIENCE, PATIENCE};
use super::index::{Entry, Index};
use super::layout::{FAILED_JOB, Layout, WRITE_AHEAD_LOG, remove};
use super::ledger::{self, Contents, Recovered};
use super::objects::{Integrity, check};
use super::snapshot::{Identity, Snapshot};
use super::verdicts;
use super::{Artifact, CacheError, ExternalError, Remote, RunLock, StatIndex};
use crate::config::ArtifactKind;
use crate::digest::Digest;
use crate::graph::{Fingerprint, Manifest};

#[derive(Debug)]
pub struct Cache {
    pub(super) layout: Layout,
    pub(super) database: Arc<Database>,
    index: Mutex<Index>,
    /// Held while an artifact moves to its place.
    pub(super) adopting: Mutex<()>,
    stats: StatIndex,
    /// Files artifacts that another cache has.
    borrowed: Mutex<HashMap<Digest, PathBuf>>,
    manifests: Mutex<Manifests>,
    /// The database file that the snapshot on disk belongs to.
    snapshot: Mutex<Option<Identity>>,
    committer: Option<Committer>,
    recovered: Option<Recovered>,
    remote: Option<Remote>,
    _lock: Option<RunLock>,
}

/// What a node gave, to be committed.
#[derive(Debug, Clone)]
pub struct NewEntry<'a> {
    pub pipeline: &'a str,
    pub node: &'a str,
    pub op: &'a str,
    pub manifest: &'a Manifest,
    pub outputs: BTreeMap<String, Artifact>,
    pub metrics: BTreeMap<String, f64>,
    pub seconds: f64,
}

/// Manifests of finished nodes; read from the database when first needed.
#[derive(Debug, Default)]
struct Manifests {
    known: HashMap<Fingerprint, Arc<Manifest>>,
    loaded: bool,
}

#[derive(Debug, Clone)]
pub enum Lookup {
    Hit(Arc<Entry>),
    /// `damaged` says what is wrong with an entry that is there but cannot be used.
    Miss {
        damaged: Option<String>,
    },
}

impl Cache {
    /// Opens for a run; `lock` is kept until the cache is dropped.
    pub fn open(folder: &Path, lock: RunLock) -> Result<Self, CacheError> {
        let layout = Layout::new(folder);
        layout.prepare()?;
        let cache = Self::with(layout, true, Some(lock), PATIENCE)?;
        cache.drop_finished_scratch()?;
        Ok(cache)
    }

    /// Opens to look only; a folder that is not there is an empty cache. Works while a run is on, between its commits.
    pub fn open_read_only(folder: &Path) -> Result<Self, CacheError> {
        let layout = Layout::new(folder);
        layout.check_version()?;
        Self::with(layout, false, None, PATIENCE)
    }

    /// The same for what can be told in part without the cache: gives up soon where another process holds the database.
    pub fn open_to_glance(folder: &Path) -> Result<Self, CacheError> {
        let layout = Layout::new(folder);
        layout.check_version()?;
        Self::with(layout, false, None, LITTLE_PATIENCE)
    }

    fn with(
        layout: Layout,
        writable: bool,
        lock: Option<RunLock>,
        patience: Duration,
    ) -> Result<Self, CacheError> {
        let database = Database::new(&layout, writable).with_patience(patience);
        let database = Arc::new(database);
        let mut recovered = None;
        let (index, snapshot) = match Snapshot::read(&layout) {
            Some((index, identity)) => (index, Some(identity)),
            None => {
                let loaded = load(&database).and_then(|index| match index {
                    None if writable && layout.ledger().exists() => Err(CacheError::Damaged {
                        path: layout.database(),
                        message: "it is gone".to_owned(),
                    }),
                    index => Ok(index.unwrap_or_default()),
                });
                let index = match loaded {
                    Err(CacheError::Damaged { message, .. }) if writable => {
                        recovered = Some(recover(&layout, &database, message)?);
                        load(&database)?.unwrap_or_default()
                    }
                    loaded => loaded?,
                };
                (index, None)
            }
        };
        let committer = if writable {
            Some(Committer::start(Arc::clone(&database), layout.clone())?)
        } else {
            None
        };
        let stats = StatIndex::load(&layout.stats());
        let (index, snapshot) = (Mutex::new(index), Mutex::new(snapshot));
        let (adopting, manifests) = (Mutex::default(), Mutex::default());
        let borrowed = Mutex::default();
        Ok(Self {
            layout,
            database,
            index,
            adopting,
            stats,
            borrowed,
            manifests,
            snapshot,
            committer,
            recovered,
            remote: None,
            _lock: lock,
        })
    }

    pub(super) fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What became of a damaged database when this cache was opened.
    pub fn recovered(&self) -> Option<&Recovered> {
        self.recovered.as_ref()
    }

    /// Has results looked up in a shared cache too, and makes [`Cache::send`] and [`Cache::fetch`] mean it.
    pub fn set_remote(&mut self, remote: Remote) {
        self.remote = Some(remote);
    }

    pub fn remote(&self) -> Option<&Remote> {
        self.remote.as_ref()
    }

    pub fn folder(&self) -> &Path {
        self.layout.root()
    }

    /// The folder of a files artifact.
    pub fn object_path(&self, digest: &Digest) -> PathBuf {
        let borrowed = self.borrowed.lock().unwrap_or_else(PoisonError::into_inner);
        borrowed
            .get(digest)
            .cloned()
            .unwrap_or_else(|| self.layout.object(digest))
    }

    /// Reads a files artifact where another cache has it, from now on.
    pub fn borrow_files(&self, digest: Digest, place: PathBuf) {
        let mut borrowed = self.borrowed.lock().unwrap_or_else(PoisonError::into_inner);
        borrowed.insert(digest, place);
    }

    /// Where an unfinished node keeps its progress.
    pub fn scratch_path(&self, fingerprint: Fingerprint) -> PathBuf {
        self.layout.partial(fingerprint)
    }

    /// Where a node that other processes work at is described, and where they leave what they have done.
    pub fn job_path(&self, fingerprint: Fingerprint) -> PathBuf {
        self.layout.job(fingerprint)
    }

    /// The folder of all scratch folders.
    pub fn partials_path(&self) -> PathBuf {
        self.layout.partials()
    }

    /// The digest of data outside the cache.
    pub fn digest_path(&self, path: &Path) -> Result<Digest, ExternalError> {
        self.stats.digest(path)
    }

    /// The result under a fingerprint. A hit has been checked: every artifact is there and, as far as sizes and times
    /// tell, untouched; where they differ the content decides. What is known to be in the shared cache is a hit without
    /// being here, see [`Cache::is_here`].
    pub fn lookup(&self, fingerprint: Fingerprint) -> Result<Lookup, CacheError> {
        let Some(entry) = self.index().entry(&fingerprint) else {
            return Ok(Lookup::Miss { damaged: None });
        };
        for (name, artifact) in &entry.outputs {
            if let Some(problem) = self.problem(artifact)?
                && !self.remote().is_some_and(|remote| remote.has(&fingerprint))
            {
                return Ok(Lookup::Miss {
                    damaged: Some(format!("output `{name}` {problem}")),
                });
            }
        }
        Ok(Lookup::Hit(entry))
    }

    /// Whether the content of an artifact is on this machine.
    pub fn has(&self, artifact: &Artifact) -> bool {
        self.index().record(&artifact.digest).is_some()
    }

    /// Whether all that a result gave is on this machine.
    pub fn is_here(&self, entry: &Entry) -> bool {
        entry.outputs.values().all(|artifact| self.has(artifact))
    }

    /// What is wrong with an artifact; a bad one is forgotten, so that it is made again.
    pub(super) fn problem(&self, artifact: &Artifact) -> Result<Option<String>, CacheError> {
        let Some(record) = self.index().record(&artifact.digest) else {
            return Ok(Some("is gone".to_owned()));
        };
        if artifact.kind == ArtifactKind::Table {
            return Ok(None);
        }
        match check(&self.layout.object(&artifact.digest), &record.files)? {
            Integrity::Intact => Ok(None),
            Integrity::Touched(files) => {
                let record = self.index().add_record(super::index::Record {
                    files,
                    ..(*record).clone()
                });
                if let Some(committer) = &self.committer {
                    committer.submit(Change::Record(record))?;
                }
                Ok(None)
            }
            Integrity::Damaged(problem) => {
                self.index().remove_record(&artifact.digest);
                Ok(Some(problem))
            }
        }
    }

    /// The entry under a fingerprint as it is written down, unchecked.
    pub fn entry(&self, fingerprint: Fingerprint) -> Option<Arc<Entry>> {
        self.index().entry(&fingerprint)
    }

    /// Makes a result visible at once and durable soon ([`Cache::flush`] waits for that).
    pub fn commit(&self, new: NewEntry) -> Result<Arc<Entry>, CacheError> {
        let committer = self.committer()?;
        let manifest = serde_json::to_string(new.manifest).map_err(std::io::Error::from)?;
        let entry = Arc::new(Entry {
            fingerprint: new.manifest.fingerprint(),
            pipeline: new.pipeline.to_owned(),
            node: new.node.to_owned(),
            op: new.op.to_owned(),
            outputs: new.outputs,
            metrics: new.metrics,
            seconds: new.seconds,
            created: now(),
        });
        let mut index = self.index();
        let mut records = Vec::new();
        for artifact in entry.outputs.values() {
            if index.unsaved.remove(&artifact.digest) {
                records.extend(index.record(&artifact.digest));
            }
        }
        let seq = index.next;
        index.next += 1;
        index.add_entry(Arc::clone(&entry));
        index.set_latest(new.pipeline, new.node, entry.fingerprint);
        drop(index);
        self.manifests()
            .known
            .insert(entry.fingerprint, Arc::new(new.manifest.clone()));
        committer.submit(Change::Entry {
            seq,
            entry: Arc::clone(&entry),
            manifest,
            records,
            ran: true,
        })?;
        Ok(entry)
    }

    /// Takes a result over whose content is elsewhere; durable as others are.
    pub(super) fn adopt_entry(
        &self,
        entry: Arc<Entry>,
        manifest: Arc<Manifest>,
    ) -> Result<(), CacheError> {
        let text = serde_json::to_string(&*manifest).map_err(std::io::Error::from)?;
        let mut index = self.index();
        let seq = index.next;
        index.next += 1;
        index.add_entry(Arc::clone(&entry));
        drop(index);
        self.manifests().known.insert(entry.fingerprint, manifest);
        // Open for reading only it is remembered as long as this process lives.
        match &self.committer {
            Some(committer) => committer.submit(Change::Entry {
                seq,
                entry,
                manifest: text,
                records: Vec::new(),
                ran: false,
            }),
            None => Ok(()),
        }
    }

    /// Makes an artifact that was fetched durable, as nothing else is committed with it.
    pub(super) fn keep_record(&self, digest: &Digest) -> Result<(), CacheError> {
        let mut index = self.index();
        let unsaved = index.unsaved.remove(digest);
        let record = index.record(digest).filter(|_| unsaved);
        drop(index);
        record.map_or(Ok(()), |record| {
            self.committer()?.submit(Change::Record(record))
        })
    }

    /// Notes which fingerprint each node of a pipeline has now, for the comparison at its next change.
    pub fn set_latest<'a>(
        &self,
        pipeline: &str,
        nodes: impl IntoIterator<Item = (&'a str, Fingerprint)>,
    ) -> Result<(), CacheError> {
        let committer = self.committer()?;
        for (node, fingerprint) in nodes {
            let mut index = self.index();
            if index.set_latest(pipeline, node, fingerprint) {
                let seq = index.next;
                index.next += 1;
                drop(index);
                committer.submit(Change::Latest {
                    seq,
                    pipeline: pipeline.to_owned(),
                    node: node.to_owned(),
                    fingerprint,
                })?;
            }
        }
        Ok(())
    }

    fn committer(&self) -> Result<&Committer, CacheError> {
        self.committer.as_ref().ok_or_else(|| {
            CacheError::Io(std::io::Error::other("the cache is open for reading only"))
        })
    }

    fn manifests(&self) -> MutexGuard<'_, Manifests> {
        self.manifests
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The manifest of a node of a pipeline as of its last run.
    pub fn last_manifest(
        &self,
        pipeline: &str,
        node: &str,
    ) -> Result<Option<Arc<Manifest>>, CacheError> {
        let latest = self.index().latest(pipeline, node);
        latest.map_or(Ok(None), |fingerprint| self.manifest(fingerprint))
    }

    /// The manifest that was committed under a fingerprint.
    pub fn manifest(&self, fingerprint: Fingerprint) -> Result<Option<Arc<Manifest>>, CacheError> {
        if self.index().entry(&fingerprint).is_none() {
            return Ok(None);
        }
        Ok(self.loaded_manifests()?.known.get(&fingerprint).cloned())
    }

    /// All manifests, for finding out whether any result could fit.
    pub fn all_manifests(&self) -> Result<Vec<Arc<Manifest>>, CacheError> {
        Ok(self.loaded_manifests()?.known.values().cloned().collect())
    }

    fn loaded_manifests(&self) -> Result<MutexGuard<'_, Manifests>, CacheError> {
        let mut manifests = self.manifests();
        if !manifests.loaded && self.database.path().exists() {
            let connection = self.database.connection()?;
            let mut statement = connection.prepare("select fingerprint, manifest from entries")?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let (fingerprint, manifest) = (row.get_ref(0)?.as_str(), row.get_ref(1)?.as_str());
                let fingerprint = fingerprint
                    .ok()
                    .and_then(|text| text.parse().ok())
                    .map(Fingerprint);
                // One written by another version, with other parts, is nothing to compare with.
                let manifest = manifest
                    .ok()
                    .and_then(|text| serde_json::from_str(text).ok());
                if let (Some(fingerprint), Some(manifest)) = (fingerprint, manifest) {
                    manifests
                        .known
                        .entry(fingerprint)
                        .or_insert_with(|| Arc::new(manifest));
                }
            }
        }
        manifests.loaded = true;
        Ok(manifests)
    }

    /// Waits until everything committed is durable, and saves what makes the next start quick.
    pub fn flush(&self) -> Result<(), CacheError> {
        let Some(committer) = &self.committer else {
            return Ok(());
        };
        committer.flush()?;
        self.stats.save(&self.layout.stats())?;
        if let Some(remote) = &self.remote {
            remote.save(&self.layout)?;
        }
        self.database.close_if_idle(Duration::ZERO);
        if self.database.is_doubtful() {
            // The next run must look at the file itself, and makes it anew where it is damaged.
            return Ok(remove(&self.layout.snapshot())?);
        }
        let mut known = self.snapshot.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Snapshot::refresh(&self.layout, &self.index(), &mut known)?)
    }

    /// Removes scratch folders of nodes that were committed just before a crash.
    fn drop_finished_scratch(&self) -> Result<(), CacheError> {
        for folder in unfinished(&self.layout)? {
            let path = folder.path();
            let is_failed = path.extension().is_some_and(|last| last == FAILED_JOB);
            let name = if is_failed {
                path.file_stem()
            } else {
                path.file_name()
            };
            let fingerprint = name
                .and_then(|name| name.to_str()?.parse().ok())
                .map(Fingerprint);
            let entry = fingerprint.map(|fingerprint| self.entry(fingerprint));
            // A result that is known and not here may be on its way to be made.
            if entry.is_none_or(|entry| entry.is_some_and(|entry| self.is_here(&entry))) {
                remove(&path)?;
            }
        }
        Ok(())
    }
}

/// The folders of nodes that were not committed when they were last written to.
pub(super) fn unfinished(layout: &Layout) -> std::io::Result<Vec<fs::DirEntry>> {
    let mut found = Vec::new();
    for folder in [layout.partials(), layout.jobs()] {
        match fs::read_dir(folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            items => {
                for item in items? {
                    found.push(item?);
                }
            }
        }
    }
    Ok(found)
}

/// The index as the database has it; `None` where there is no database yet.
fn load(database: &Database) -> Result<Option<Index>, CacheError> {
    if !database.path().exists() {
        return Ok(None);
    }
    let index = database
        .connection()
        .and_then(|connection| Index::load(&connection));
    index.map(Some).map_err(|error| error.at(database.path()))
}

/// Makes a database from the ledger and puts the damaged one aside; one that is killed meanwhile is done again.
fn recover(layout: &Layout, database: &Database, problem: String) -> Result<Recovered, CacheError> {
    database.close_if_idle(Duration::ZERO);
    let Contents { entries, verdicts } = ledger::read(layout)?;
    let new = layout.scratch();
    Database::create(&new, |connection| {
        committer::insert(connection, &entries)?;
        verdicts::insert(connection, &verdicts)
    })?;
    let (path, aside) = (layout.database(), layout.damaged_database());
    let aside = if path.exists() {
        fs::rename(&path, &aside)?;
        Some(aside)
    } else {
        None
    };
    // Of the old database; the new one has none.
    remove(&path.with_extension(WRITE_AHEAD_LOG))?;
    fs::rename(&new, &path)?;
    let (entries, verdicts) = (entries.len(), verdicts.len());
    Ok(Recovered {
        aside,
        problem,
        entries,
        verdicts,
    })
}

impl Drop for Cache {
    fn drop(&mut self) {
        // Whoever needs to know whether it worked has called `flush`.
        let _ = self.flush();
    }
}
