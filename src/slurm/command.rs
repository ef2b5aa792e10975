//! Slurm's own programs.

use std::process::{Command, Output};

use crate::ops::OpError;

/// A program of Slurm, without what a job that flow itself runs in has in its environment: it would pass for the new
/// job's.
pub(super) fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        let inherited = ["SLURM_", "SBATCH_", "SQUEUE_", "SCANCEL_", "SACCT_"]
            .iter()
            .any(|prefix| name.starts_with(prefix));
        // The one that says where the cluster is.
        if inherited && name != "SLURM_CONF" {
            command.env_remove(name);
        }
    }
    command
}

/// Standard output of a program that ended well; else the last line it said.
pub(super) fn answer(command: &mut Command) -> Result<String, String> {
    match command.output() {
        Ok(output) if output.status.success() => {
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        }
        Ok(output) => Err(said(&output)),
        Err(error) => Err(error.to_string()),
    }
}

/// What a program said when it failed, in a line.
pub(super) fn said(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    // The last is what it all comes to, but for a hint.
    let last = text
        .lines()
        .rev()
        .find(|line| !line.trim().is_empty() && !line.starts_with("Try "));
    last.map_or_else(
        || output.status.to_string(),
        |line| {
            let line = line.trim();
            // `sbatch: error: …`
            let bare = line.split_once(": error: ").map_or(line, |(_, rest)| rest);
            bare.to_owned()
        },
    )
}

pub(super) fn missing(program: &str, error: &std::io::Error) -> OpError {
    OpError::with_help(
        format!("`{program}` cannot be started: {error}"),
        "run on a machine of the cluster that has Slurm's commands, or with `--executor local`",
    )
}
