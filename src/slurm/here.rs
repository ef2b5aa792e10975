//! Runs that do without Slurm, on a cache where an earlier run did not.

use super::command::answer;
use super::submission::Submission;
use crate::cache::Cache;
use crate::engine::{Call, Executor};
use crate::graph::{Fingerprint, Node};
use crate::jobs::JobFolder;
use crate::ops::{Context, Op, OpError, Outputs};

/// Runs nothing, and keeps this process away from what a job may be working at.
#[derive(Debug)]
pub struct Here;

impl Executor for Here {
    fn takes(&self, _: &dyn Op, _: &Node) -> bool {
        false
    }

    fn most(&self) -> u32 {
        0
    }

    fn run(&self, _: &Call<'_>, context: &mut Context<'_>) -> Result<Outputs, OpError> {
        Err(OpError::new(format!(
            "`{}` was given to an executor that runs nothing",
            context.node.name
        )))
    }

    fn clear(&self, cache: &Cache, fingerprint: Fingerprint) -> Result<(), OpError> {
        clear(&JobFolder::new(cache.job_path(fingerprint)))
    }
}

/// Fails where a job of the folder may be at work; removes the folder where none is.
pub(super) fn clear(folder: &JobFolder) -> Result<(), OpError> {
    if !folder.exists() {
        return Ok(());
    }
    let ids = Submission::read(folder)?.ids();
    if let Some(last) = ids.last() {
        let mut squeue = super::command::command("squeue");
        squeue.args(["--me", "--noheader", "--format=%F"]);
        let help = format!(
            "run with `--executor slurm` to go on with it, or `scancel {}` first",
            ids.join(" ")
        );
        match answer(&mut squeue) {
            Ok(text)
                if !text
                    .lines()
                    .any(|line| ids.iter().any(|id| id == line.trim())) => {}
            Ok(_) => {
                return Err(OpError::with_help(
                    format!("Slurm job {last} of an earlier run is at work on it"),
                    help,
                ));
            }
            Err(trouble) => {
                return Err(OpError::with_help(
                    format!(
                        "Slurm job {last} of an earlier run may be at work on it, and `squeue` does not say: {trouble}"
                    ),
                    format!(
                        "{help}; if it is known to be gone, remove `{}`",
                        folder.root().display()
                    ),
                ));
            }
        }
    }
    Ok(folder.remove()?)
}
