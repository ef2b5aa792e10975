//! Giving a folder's tasks to Slurm so that none is given twice, also when flow is killed while it does.

use std::ffi::OsString;
use std::io::{Seek as _, SeekFrom};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use fs_err as fs;
use serde::{Deserialize, Serialize};

use super::SlurmOptions;
use super::command::{command, missing, said};
use super::queue;
use super::state::{is_passing, refused};
use crate::config::JobSpec;
use crate::jobs::{Job, JobFolder, read_json};
use crate::ops::OpError;

/// Waits between tries when Slurm is busy; about four minutes in all.
const WAITS: [u64; 6] = [2, 5, 10, 30, 60, 120];

/// What was given to Slurm for a folder.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub(super) struct Submission {
    /// How many times `sbatch` was started.
    asked: u32,
    /// The tasks of the `sbatch` that is under way, or was when flow was killed.
    asking: Option<Vec<u32>>,
    /// In the order in which they were taken.
    jobs: Vec<Submitted>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Submitted {
    id: u64,
    tasks: Vec<u32>,
    array: bool,
}

impl Submission {
    pub(super) fn read(folder: &JobFolder) -> std::io::Result<Self> {
        Ok(read_json(&folder.submission())?.unwrap_or_default())
    }

    fn write(&self, folder: &JobFolder) -> std::io::Result<()> {
        crate::atomic::write_durable(&folder.submission(), &serde_json::to_vec(self)?)
    }

    /// The job that has a task now: `12`, or `12_3` in an array.
    pub(super) fn id(&self, task: u32) -> Option<String> {
        let job = self
            .jobs
            .iter()
            .rev()
            .find(|job| job.tasks.contains(&task))?;
        Some(match job.array {
            true => format!("{}_{task}", job.id),
            false => job.id.to_string(),
        })
    }

    /// Of everything that was ever given for the folder.
    pub(super) fn ids(&self) -> Vec<String> {
        self.jobs.iter().map(|job| job.id.to_string()).collect()
    }

    /// No other `sbatch` has a job of this name.
    fn job_name(&self, job: &Job) -> String {
        let node = in_name(&job.node.name);
        format!("flow-{}-{}-{node}", job.fingerprint.0.short(), self.asked)
    }

    /// Finds out what became of an `sbatch` that flow did not see the end of: takes over the job, or knows that there is
    /// none.
    pub(super) fn settle(&mut self, folder: &JobFolder, job: &Job) -> Result<(), OpError> {
        let Some(tasks) = self.asking.clone() else {
            return Ok(());
        };
        // It holds the lock as long as it runs, whoever started it.
        let script = fs::File::open(folder.script())?;
        rustix::fs::flock(&script, rustix::fs::FlockOperation::LockExclusive)
            .map_err(std::io::Error::from)?;
        let found = queue::ask(&[&format!("--name={}", self.job_name(job))]);
        let found = found.map_err(|trouble| {
            OpError::with_help(
                format!(
                    "it is not known whether `{}` is with Slurm already: {trouble}",
                    job.node.name
                ),
                "run again when `squeue` answers",
            )
        })?;
        let number = |id: &String| id.split('_').next()?.parse::<u64>().ok();
        if let Some(id) = found.keys().find_map(number) {
            self.jobs.push(Submitted {
                id,
                array: job.parts,
                tasks,
            });
        }
        self.asking = None;
        Ok(self.write(folder)?)
    }

    /// Gives tasks to Slurm.
    pub(super) fn submit(
        &mut self,
        folder: &JobFolder,
        job: &Job,
        tasks: &[u32],
        options: &SlurmOptions,
        call: &Wanted,
    ) -> Result<(), OpError> {
        let script = script(&call.program, folder.root(), job.parts)?;
        fs::write(folder.script(), script)?;
        let mut waits = WAITS.iter();
        loop {
            self.asked += 1;
            self.asking = Some(tasks.to_vec());
            self.write(folder)?;
            let mut file = std::fs::File::open(folder.script())?;
            rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive)
                .map_err(std::io::Error::from)?;
            file.seek(SeekFrom::Start(0))?;
            let mut sbatch = command("sbatch");
            sbatch
                .args(arguments(
                    folder,
                    job,
                    tasks,
                    options,
                    call,
                    &self.job_name(job),
                ))
                // All that it has is the job's. A list of names for `--export` would make Slurm start a login shell on the
                // job's machine first, for what else there might be: half a second a job here, and more where homes are slow.
                .env_clear()
                .envs(call.variables())
                // The lock goes with the open file, so that it lasts until `sbatch` ends.
                .stdin(Stdio::from(file));
            let output = match sbatch.output() {
                Ok(output) => output,
                Err(error) => {
                    self.asking = None;
                    self.write(folder)?;
                    return Err(missing("sbatch", &error));
                }
            };
            let id = String::from_utf8_lossy(&output.stdout);
            // `12`, or `12;cluster`.
            let id = id.trim().split(';').next().and_then(|id| id.parse().ok());
            if let Some(id) = id.filter(|_| output.status.success()) {
                self.jobs.push(Submitted {
                    id,
                    array: job.parts,
                    tasks: tasks.to_vec(),
                });
                self.asking = None;
                return Ok(self.write(folder)?);
            }
            let answer = said(&output);
            let wait = waits.next().filter(|_| is_passing(&answer));
            let Some(wait) = wait else {
                self.asking = None;
                self.write(folder)?;
                return Err(OpError::with_help(
                    format!("`sbatch` did not take the job: {answer}"),
                    refused(&answer),
                ));
            };
            if call.cancel.is_cancelled() {
                return Err(OpError::Cancelled);
            }
            std::thread::sleep(Duration::from_secs(*wait));
            // An answer that did not come may be that of a job that was taken.
            let before = self.jobs.len();
            self.settle(folder, job)?;
            if self.jobs.len() > before {
                return Ok(());
            }
        }
    }
}

/// A node's name as part of a job's: names end up in columns, and `squeue` takes lists of them. A variant's name has its values
/// in it, with commas between.
fn in_name(node: &str) -> String {
    let plain = |letter: char| match letter {
        letter if letter.is_alphanumeric() || ".-_@=".contains(letter) => letter,
        _ => '_',
    };
    node.chars().take(40).map(plain).collect()
}

/// What the jobs of one call need beside their folder.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    /// The worker's program.
    pub(super) program: std::path::PathBuf,
    pub(super) spec: JobSpec,
    /// Names of variables that are passed on.
    pub(super) environment: Vec<String>,
    pub(super) cancel: crate::engine::CancelToken,
}

impl Wanted {
    /// The variables that are set, and the one that says where the cluster is.
    fn variables(&self) -> impl Iterator<Item = (&str, OsString)> {
        let names = self.environment.iter().map(String::as_str);
        names
            .chain(["SLURM_CONF"])
            .filter_map(|name| Some((name, std::env::var_os(name)?)))
    }
}

fn arguments(
    folder: &JobFolder,
    job: &Job,
    tasks: &[u32],
    options: &SlurmOptions,
    call: &Wanted,
    name: &str,
) -> Vec<String> {
    let log = folder.logs().display().to_string().replace('%', "%%");
    let mut arguments: Vec<String> = [
        "--parsable",
        "--requeue",
        "--nodes=1",
        "--ntasks=1",
        "--open-mode=append",
    ]
    .map(str::to_owned)
    .into();
    let mut give = |name: &str, value: &str| arguments.push(format!("--{name}={value}"));
    give("job-name", name);
    give("comment", &format!("flow: {}", job.node.name));
    give("chdir", &folder.root().display().to_string());
    give(
        "output",
        &format!("{log}/{}.txt", if job.parts { "%A_%a" } else { "%j" }),
    );
    give("export", "ALL");
    if job.parts {
        let list: Vec<String> = tasks.iter().map(u32::to_string).collect();
        give("array", &list.join(","));
    }
    let JobSpec {
        cpus,
        gpus,
        memory,
        time,
        partition,
    } = &call.spec;
    let texts = [
        ("cpus-per-task", cpus.map(|cpus| cpus.to_string())),
        (
            "gpus-per-node",
            gpus.filter(|&gpus| gpus > 0).map(|gpus| gpus.to_string()),
        ),
        ("mem", memory.map(|mebibytes| format!("{mebibytes}M"))),
        ("time", time.map(|minutes| minutes.to_string())),
        ("partition", partition.clone()),
        ("account", options.account.clone()),
        ("qos", options.qos.clone()),
    ];
    for (name, value) in texts {
        if let Some(value) = value {
            give(name, &value);
        }
    }
    for (name, value) in &options.options {
        match value {
            Some(value) => arguments.push(format!("--{name}={value}")),
            None => arguments.push(format!("--{name}")),
        }
    }
    arguments
}

/// What the job runs. Libraries that start a thread for each processor of a machine would start too many.
fn script(program: &Path, folder: &Path, parts: bool) -> Result<String, OpError> {
    let quoted = |path: &Path| {
        let text = path.to_str().ok_or_else(|| {
            OpError::new(format!("`{}` has a name that is not UTF-8", path.display()))
        })?;
        Ok::<_, OpError>(format!("'{}'", text.replace('\'', r"'\''")))
    };
    let task = if parts {
        "\"$SLURM_ARRAY_TASK_ID\""
    } else {
        "0"
    };
    Ok(format!(
        "#!/bin/sh
threads=${{SLURM_CPUS_PER_TASK:-${{SLURM_CPUS_ON_NODE:-}}}}
if [ -n \"$threads\" ]; then
  export OMP_NUM_THREADS=\"${{OMP_NUM_THREADS:-$threads}}\" RAYON_NUM_THREADS=\"${{RAYON_NUM_THREADS:-$threads}}\"
fi
exec {} node {} --task {task}
",
        quoted(program)?,
        quoted(folder)?
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_job_that_has_a_task_is_the_last_that_was_given_it() {
        let submitted = |id, tasks: &[u32], array| Submitted {
            id,
            tasks: tasks.to_vec(),
            array,
        };
        let submission = Submission {
            jobs: vec![submitted(7, &[0, 1, 2], true), submitted(9, &[1], true)],
            ..Submission::default()
        };
        assert_eq!(submission.id(0).as_deref(), Some("7_0"));
        assert_eq!(submission.id(1).as_deref(), Some("9_1"));
        assert_eq!(submission.id(5), None);
        let single = Submission {
            jobs: vec![submitted(7, &[0], false)],
            ..Submission::default()
        };
        assert_eq!(single.id(0).as_deref(), Some("7"));
    }

    #[test]
    fn names_of_jobs_are_plain() {
        assert_eq!(in_name("train.fit@r=8,lr=1e-4"), "train.fit@r=8_lr=1e-4");
        assert_eq!(in_name("clean@ask=a|b c%j"), "clean@ask=a_b_c_j");
    }

    #[test]
    fn paths_in_the_script_are_quoted() {
        let script = script(Path::new("/opt/it's/flow"), Path::new("/a b/job"), true).unwrap();
        let last = script.lines().last().unwrap();
        assert_eq!(
            last,
            r#"exec '/opt/it'\''s/flow' node '/a b/job' --task "$SLURM_ARRAY_TASK_ID""#
        );
    }
}
