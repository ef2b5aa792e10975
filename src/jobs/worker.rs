//! The other process: does a task of a job's folder and leaves there what came of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fs_err as fs;

use super::events::EventLog;
use super::folder::{Ended, JobFolder, Left, Report, TaskFolder, remove};
use super::job::{Given, Job};
use crate::cache::{Artifact, Cache, Holder, RunLock};
use crate::config::ArtifactKind;
use crate::engine::{CancelToken, run_here};
use crate::ops::{Catalog, Context, OpError, Outputs, Part};

/// How often a try says that it is alive, and looks whether it still owns its task.
const BEAT: Duration = Duration::from_millis(500);
/// A try that says nothing for so long is dead. Longer than another machine may see an old file for.
const DEAD: Duration = Duration::from_secs(5);

/// Who does a task, and with what.
pub struct Worker<'a> {
    /// A name that no other try at the task has.
    pub attempt: String,
    pub catalog: &'a Catalog,
    pub gpus: Vec<u32>,
    /// The process that this one is to end with.
    pub parent: Option<u32>,
    pub cancel: CancelToken,
}

/// What a try came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    Done,
    Failed(String),
    /// Asked to stop, or replaced by another try; progress is saved.
    Stopped,
}

impl Worker<'_> {
    /// Does a task.
    ///
    /// # Errors
    /// What keeps it from leaving any report.
    pub fn work(&self, folder: &Path, task: u32) -> Result<End, OpError> {
        let folder = JobFolder::new(std::path::absolute(folder)?);
        let job = Job::read(&folder)?.ok_or_else(|| {
            OpError::with_help(
                format!("`{}` holds no job of this version", folder.root().display()),
                "the program on this machine has to be the one that was run; is the folder on a shared file system?",
            )
        })?;
        let files = folder.task(task);
        if !self.take_over(&files)? {
            return Ok(End::Stopped);
        }
        if files.report()?.is_some() {
            return Ok(End::Done);
        }
        let mine = files.attempt(&self.attempt);
        let events = EventLog::open(&mine.join("events.jsonl"))?;
        let over = AtomicBool::new(false);
        let (result, owns) = std::thread::scope(|scope| {
            let beats = scope.spawn(|| self.beat(&files, &events, &over));
            let result = self.run(&folder, &job, task, &events);
            over.store(true, Ordering::SeqCst);
            beats.thread().unpark();
            (result, beats.join().unwrap_or(false))
        });
        if !owns {
            return Ok(End::Stopped);
        }
        let ended = match result {
            Err(OpError::Cancelled) => {
                fs::write(mine.join("stopped"), "")?;
                return Ok(End::Stopped);
            }
            Ok(ended) => ended,
            Err(error) => Ended::Failed {
                message: error.to_string(),
                help: error.help(),
            },
        };
        let end = match &ended {
            Ended::Done { .. } => End::Done,
            Ended::Failed { message, .. } => End::Failed(message.clone()),
        };
        files.finish(&Report {
            attempt: self.attempt.clone(),
            host: host(),
            ended,
        })?;
        Ok(end)
    }

    /// Becomes the one that may write, and waits until the one before has ended: it may be on a machine that only the
    /// scheduler has lost. Returns whether it is this one's turn.
    fn take_over(&self, files: &TaskFolder) -> Result<bool, OpError> {
        let before = files.owned_by()?.filter(|owner| *owner != self.attempt);
        fs::create_dir_all(files.attempt(&self.attempt))?;
        files.own(&self.attempt)?;
        let Some(before) = before else {
            return Ok(true);
        };
        let folder = files.attempt(&before);
        let look = || super::folder::read(&folder.join("alive"));
        let (mut seen, mut since) = (look()?, Instant::now());
        while since.elapsed() < DEAD && !folder.join("stopped").exists() {
            if self.cancel.is_cancelled() {
                return Ok(false);
            }
            std::thread::sleep(BEAT / 2);
            let now = look()?;
            if now != seen {
                (seen, since) = (now, Instant::now());
            }
        }
        // Answers count; the rest of a try counts only if it has come to its end meanwhile.
        if files.report()?.is_none() {
            remove(&folder.join("cache"))?;
        }
        Ok(true)
    }

    /// Says that this try is alive until it is over; whether it was its turn until then.
    fn beat(&self, files: &TaskFolder, events: &EventLog, over: &AtomicBool) -> bool {
        let mut owns = true;
        let mut beats = 0_u64;
        let alive = files.attempt(&self.attempt).join("alive");
        while !over.load(Ordering::SeqCst) {
            beats += 1;
            // A beat that cannot be written is like one that was not seen.
            let _ = fs::write(&alive, beats.to_string());
            events.flush();
            if files
                .owned_by()
                .is_ok_and(|owner| owner.as_deref() != Some(&self.attempt))
            {
                owns = false;
                self.cancel.cancel();
            }
            let parent = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get() as u32);
            if self.parent.is_some() && self.parent != parent {
                self.cancel.cancel();
            }
            std::thread::park_timeout(BEAT);
        }
        events.flush();
        // The last look is just before the report.
        owns && files
            .owned_by()
            .is_ok_and(|owner| owner.as_deref() == Some(&self.attempt))
    }

    fn run(
        &self,
        folder: &JobFolder,
        job: &Job,
        task: u32,
        events: &EventLog,
    ) -> Result<Ended, OpError> {
        for path in job
            .paths
            .values()
            .chain(job.models.values().map(|(path, _)| path))
        {
            if !path.as_os_str().is_empty() && !path.exists() {
                return Err(OpError::with_help(
                    format!("there is no `{}` on {}", path.display(), host()),
                    "models and data have to lie where all machines of the cluster see them",
                ));
            }
        }
        // What an earlier try at this node left running on this machine.
        if let Some(partials) = job.scratch.parent() {
            crate::engine::end_leftovers(partials, &|other| other != job.fingerprint)?;
        }
        let files = folder.task(task);
        let mine = files.attempt(&self.attempt);
        let place = mine.join("cache");
        let cache = open(&place)?;
        fs::create_dir_all(&job.scratch)?;
        let inputs = take_inputs(folder, job, &cache)?;
        let part = job.parts.then(|| -> std::io::Result<Part> {
            let earlier = files.attempts()?.into_iter();
            Ok(Part {
                items: folder.items(task),
                earlier: earlier
                    .map(|attempt| files.attempt(&attempt).join("answers.jsonl"))
                    .collect(),
                answers: mine.join("answers.jsonl"),
            })
        });
        let mut context = Context {
            node: &job.node,
            fingerprint: job.fingerprint,
            inputs,
            models: job.models.clone(),
            paths: job.paths.clone(),
            scratch: job.scratch.clone(),
            root: job.root.clone(),
            home: job.home.clone(),
            offline: job.offline,
            gpus: self.gpus.clone(),
            cancel: self.cancel.clone(),
            cache: &cache,
            sink: events,
            part: part.transpose()?,
            parts: None,
            outputs: Outputs::default(),
        };
        let outputs = run_here(&mut context, self.catalog.run_fn(&job.node.op))?;
        leave(folder, &place, &mine, &cache, outputs)
    }
}

fn open(place: &Path) -> Result<Cache, OpError> {
    remove(place)?;
    let lock = RunLock::acquire(place, &Holder::new("node"), |_| false)?;
    Ok(Cache::open(place, lock)?)
}

/// Tables are read in; files are read where the run's own cache has them.
fn take_inputs(
    folder: &JobFolder,
    job: &Job,
    cache: &Cache,
) -> Result<BTreeMap<String, Artifact>, OpError> {
    for (port, Given { artifact, ordered }) in &job.inputs {
        match artifact.kind {
            ArtifactKind::Table => {
                cache.import_artifact(artifact, *ordered, &folder.input(port))?;
            }
            ArtifactKind::Files => {
                let theirs = job.objects.join(artifact.digest.to_string());
                cache.borrow_files(artifact.digest, theirs);
            }
        }
    }
    let artifact = |(port, given): (&String, &Given)| (port.clone(), given.artifact.clone());
    Ok(job.inputs.iter().map(artifact).collect())
}

/// Leaves outputs where they are taken from: tables as Parquet, files in the folder they are in.
fn leave(
    folder: &JobFolder,
    place: &Path,
    mine: &Path,
    cache: &Cache,
    outputs: Outputs,
) -> Result<Ended, OpError> {
    let mut left = BTreeMap::new();
    for (name, artifact) in outputs.artifacts {
        let path: PathBuf = match artifact.kind {
            ArtifactKind::Table => {
                let path = mine.join(format!("{name}.parquet"));
                cache.export_artifact(&artifact, &path)?;
                path
            }
            ArtifactKind::Files => place.join("objects").join(artifact.digest.to_string()),
        };
        let relative = path.strip_prefix(folder.root()).unwrap_or(&path);
        left.insert(
            name,
            Left {
                given: Given::of(&artifact, cache),
                place: relative.to_owned(),
            },
        );
    }
    // On the disk before anybody is told that it is there.
    rustix::fs::syncfs(&std::fs::File::open(place)?).map_err(std::io::Error::from)?;
    Ok(Ended::Done {
        outputs: left,
        metrics: outputs.metrics,
    })
}

fn host() -> String {
    Holder::new("node").host
}
