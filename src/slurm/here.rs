//! Runs that do without Slurm, perhaps on a cache where an earlier run did not.

use std::path::PathBuf;

use super::command::answer;
use super::submission::Submission;
use crate::engine::{Call, Executor};
use crate::graph::Node;
use crate::jobs::{JobFolder, PerDevice};
use crate::ops::{Context, Op, OpError, Outputs};

/// Runs everything in this process, but for what other GPUs than the first one do, which are processes of their own; keeps
/// away from what a job of an earlier run may be working at.
#[derive(Debug)]
pub struct Here {
    /// The folder with `flow` and `flow-lm`.
    pub programs: PathBuf,
    /// `CUDA_VISIBLE_DEVICES`, where it is set.
    pub visible: Option<String>,
}

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

    fn prepare(&self, op: &dyn Op, context: &mut Context<'_>) -> Result<Option<Outputs>, OpError> {
        let model = op.needs_language_model(context.node);
        let in_parts = model && context.gpus.len() > 1 && op.parts(context.node) > 1;
        // This process works on the first GPU, where models stay loaded from node to node.
        let beside = model && !in_parts && context.gpus.first().is_some_and(|&gpu| gpu > 0);
        keep_away(
            &JobFolder::new(context.cache().job_path(context.fingerprint)),
            in_parts || beside,
        )?;
        let processes = |count: usize| PerDevice {
            program: self.programs.join("flow-lm"),
            devices: devices(&context.gpus[..count], self.visible.as_deref()),
        };
        if beside {
            return processes(1).run(context).map(Some);
        }
        if in_parts {
            let count = context.gpus.len().min(op.parts(context.node) as usize);
            context.parts = Some(std::sync::Arc::new(processes(count)));
        }
        Ok(None)
    }
}

/// What GPUs that are positions among the visible ones are called.
fn devices(gpus: &[u32], visible: Option<&str>) -> Vec<String> {
    let names: Vec<&str> = visible.unwrap_or_default().split(',').collect();
    gpus.iter()
        .map(|&gpu| match (visible, names.get(gpu as usize)) {
            (Some(_), Some(name)) => name.trim().to_owned(),
            _ => gpu.to_string(),
        })
        .collect()
}

/// Fails where a job of the folder may be at work; removes the folder where none is, unless processes of this machine go on
/// with it.
pub(super) fn keep_away(folder: &JobFolder, goes_on: bool) -> Result<(), OpError> {
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
    if goes_on {
        return Ok(());
    }
    Ok(folder.remove()?)
}

#[cfg(test)]
mod tests {
    use super::devices;

    #[test]
    fn gpus_keep_the_names_that_this_process_was_given() {
        assert_eq!(devices(&[0, 1], None), ["0", "1"]);
        assert_eq!(devices(&[1, 2], Some("3, 5,GPU-7c")), ["5", "GPU-7c"]);
    }
}
