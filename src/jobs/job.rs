//! What is handed over, and what is taken back.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use fs_err as fs;
use serde::{Deserialize, Serialize};

use super::folder::{Ended, JobFolder, Report, read_json};
use super::follow::{Running, follow};
use crate::cache::{Artifact, Cache};
use crate::config::ArtifactKind;
use crate::digest::Digest;
use crate::graph::{Fingerprint, Node};
use crate::ops::{Context, Item, OpError, Outputs, split};

/// Bumped when another flow could not read what is written here.
const FORMAT: u32 = 1;

/// One call of an op, whole: what a process needs to run it that knows neither pipeline nor cache.
#[derive(Debug, Serialize, Deserialize)]
pub struct Job {
    pub format: u32,
    pub fingerprint: Fingerprint,
    pub node: Node,
    pub inputs: BTreeMap<String, Given>,
    pub models: BTreeMap<String, (PathBuf, Digest)>,
    pub paths: BTreeMap<String, PathBuf>,
    /// The scratch folder that the node would have in the process that runs the pipeline.
    pub scratch: PathBuf,
    /// The cache's folder of files, which are read in place.
    pub objects: PathBuf,
    pub root: PathBuf,
    pub home: PathBuf,
    pub offline: bool,
    pub tasks: u32,
    /// Whether the tasks are parts of the work, each with its items.
    pub parts: bool,
}

/// An artifact, with what its digest alone does not say.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Given {
    pub artifact: Artifact,
    pub ordered: bool,
}

/// A folder with everything in place for tasks to start.
#[derive(Debug)]
pub struct Prepared {
    pub folder: JobFolder,
    pub job: Job,
    /// It was there before: something may have been started.
    pub found: bool,
}

impl Given {
    pub(super) fn of(artifact: &Artifact, cache: &Cache) -> Self {
        Self {
            artifact: artifact.clone(),
            ordered: artifact.kind == ArtifactKind::Table && cache.is_ordered(&artifact.digest),
        }
    }
}

impl Job {
    fn new(context: &Context<'_>, tasks: u32, parts: bool) -> std::io::Result<Self> {
        let absolute = |path: &Path| match path.as_os_str().is_empty() {
            // An endpoint has no place.
            true => Ok(PathBuf::new()),
            false => std::path::absolute(path),
        };
        let mut models = BTreeMap::new();
        for (param, (path, digest)) in &context.models {
            models.insert(param.clone(), (absolute(path)?, *digest));
        }
        let mut paths = BTreeMap::new();
        for (param, path) in &context.paths {
            paths.insert(param.clone(), absolute(path)?);
        }
        let given = |(port, artifact): (&String, &Artifact)| {
            (port.clone(), Given::of(artifact, context.cache()))
        };
        Ok(Self {
            format: FORMAT,
            fingerprint: context.fingerprint,
            node: context.node.clone(),
            // Items hold all that their part has to know.
            inputs: match parts {
                true => BTreeMap::new(),
                false => context.inputs.iter().map(given).collect(),
            },
            models,
            paths,
            scratch: absolute(&context.scratch)?,
            objects: absolute(&context.cache().folder().join("objects"))?,
            root: absolute(&context.root)?,
            home: absolute(&context.home)?,
            offline: context.offline,
            tasks,
            parts,
        })
    }

    /// The job of a folder; `None` where there is none, or one that another flow wrote.
    pub fn read(folder: &JobFolder) -> std::io::Result<Option<Self>> {
        #[derive(Deserialize)]
        struct Head {
            format: u32,
        }
        let head: Option<Head> = read_json(&folder.job())?;
        match head.is_some_and(|head| head.format == FORMAT) {
            true => read_json(&folder.job()),
            false => Ok(None),
        }
    }
}

/// Hands over a whole call: its tables are written beside it.
pub fn prepare_node(context: &Context<'_>) -> Result<Prepared, OpError> {
    prepare(context, false, |folder| {
        fs::create_dir(folder.root().join("inputs"))?;
        for (port, artifact) in &context.inputs {
            if artifact.kind == ArtifactKind::Table {
                context
                    .cache()
                    .export_artifact(artifact, &folder.input(port))?;
            }
        }
        Ok(1)
    })
}

/// Hands over items of work in at most `count` parts.
pub fn prepare_parts(
    context: &Context<'_>,
    items: &[Item],
    count: u32,
) -> Result<Prepared, OpError> {
    prepare(context, true, |folder| {
        fs::create_dir(folder.root().join("parts"))?;
        let parts = split(items, count as usize);
        for (task, part) in parts.iter().enumerate() {
            let mut text = String::new();
            for item in *part {
                text.push_str(&item.text);
                text.push('\n');
            }
            fs::write(folder.items(task as u32), text)?;
        }
        Ok(parts.len() as u32)
    })
}

/// The node's folder as it is, or a new one, which appears whole.
fn prepare(
    context: &Context<'_>,
    parts: bool,
    fill: impl FnOnce(&JobFolder) -> Result<u32, OpError>,
) -> Result<Prepared, OpError> {
    let folder = JobFolder::new(std::path::absolute(
        context.cache().job_path(context.fingerprint),
    )?);
    if let Some(job) = Job::read(&folder)?.filter(|job| job.parts == parts) {
        return Ok(Prepared {
            folder,
            job,
            found: true,
        });
    }
    folder.remove()?;
    let new = JobFolder::new(folder.root().with_extension("new"));
    new.remove()?;
    fs::create_dir_all(new.logs())?;
    let tasks = fill(&new)?;
    let job = Job::new(context, tasks, parts)?;
    for task in 0..tasks {
        fs::create_dir_all(new.task(task).root)?;
    }
    let text = serde_json::to_vec_pretty(&job).map_err(std::io::Error::from)?;
    crate::atomic::write_durable(&new.job(), &text)?;
    fs::rename(new.root(), folder.root())?;
    Ok(Prepared {
        folder,
        job,
        found: false,
    })
}

impl Prepared {
    /// Tasks without a good end. One that failed when nobody was there to hear it is to be tried again.
    pub fn open_tasks(&self) -> std::io::Result<Vec<u32>> {
        let mut open = Vec::new();
        for task in 0..self.job.tasks {
            let files = self.folder.task(task);
            match files.report()? {
                Some(report) if report.is_whole(&self.folder) => {}
                report => {
                    if report.is_some() {
                        files.forget_report()?;
                    }
                    open.push(task);
                }
            }
        }
        Ok(open)
    }

    /// After an end that is none of a node: a folder that failed is put aside, one that was interrupted is removed, as what
    /// it was worth is in the cache and in the node's scratch folder.
    fn conclude<T>(&self, done: &Result<T, OpError>) -> std::io::Result<()> {
        match done {
            Ok(_) => Ok(()),
            Err(OpError::Cancelled) => self.folder.remove(),
            Err(_) => {
                // The failure is what is to be told.
                let _ = self.folder.set_aside();
                Ok(())
            }
        }
    }
}

impl Report {
    /// Whether everything it names is still where it was left.
    fn is_whole(&self, folder: &JobFolder) -> bool {
        match &self.ended {
            Ended::Done { outputs, .. } => outputs
                .values()
                .all(|left| folder.root().join(&left.place).exists()),
            Ended::Failed { .. } => false,
        }
    }
}

/// Follows the one task of a node to its end, and takes what it gave.
pub fn finish_node<R: Running>(
    prepared: &Prepared,
    started: Result<R, OpError>,
    context: &Context<'_>,
) -> Result<Outputs, OpError> {
    let done = started
        .and_then(|mut running| follow(prepared, &mut running, context, &mut |_| Ok(())))
        .and_then(|mut reports| {
            let report = reports.pop().expect("the call of a node is one task");
            take_outputs(&prepared.folder, report, context)
        });
    prepared.conclude(&done)?;
    done
}

/// Follows all parts of a node's work to their end, hands their answers on, and removes the folder.
pub fn finish_parts<R: Running>(
    prepared: &Prepared,
    started: Result<R, OpError>,
    context: &Context<'_>,
    take: &mut dyn FnMut(&[String]) -> Result<(), OpError>,
) -> Result<(), OpError> {
    let done = started.and_then(|mut running| follow(prepared, &mut running, context, take));
    prepared.conclude(&done)?;
    done?;
    Ok(prepared.folder.remove()?)
}

/// Takes what a task gave into the cache. The content has to be what the task said.
fn take_outputs(
    folder: &JobFolder,
    report: Report,
    context: &Context<'_>,
) -> Result<Outputs, OpError> {
    let (outputs, metrics) = match report.ended {
        Ended::Done { outputs, metrics } => (outputs, metrics),
        Ended::Failed { message, help } => return Err(OpError::Failed { message, help }),
    };
    let mut taken = Outputs {
        metrics,
        ..Outputs::default()
    };
    for (name, left) in outputs {
        let place = folder.root().join(&left.place);
        let Given { artifact, ordered } = left.given;
        match artifact.kind {
            ArtifactKind::Table => {
                context
                    .cache()
                    .import_artifact(&artifact, ordered, &place)?;
            }
            ArtifactKind::Files => {
                // Moved, not copied: what is left here goes away with the folder.
                let found = context.cache().store_files(&place)?;
                if found.digest != artifact.digest {
                    return Err(OpError::with_help(
                        format!(
                            "the output `{name}` arrived as {} and was {} where it was made",
                            found.digest.short(),
                            artifact.digest.short()
                        ),
                        "the shared folder may not show the same to all machines; run again",
                    ));
                }
            }
        }
        taken.artifacts.insert(name, artifact);
    }
    Ok(taken)
}
