//! `flow node`: does a task of a job's folder. Started by the jobs of a cluster, not by people.

use std::path::PathBuf;

use clap::Args;

use super::error::{CliError, Exit};
use super::gpus;
use super::interrupt;
use crate::engine::CancelToken;
use crate::jobs::worker::{End, Worker};
use crate::ops::Catalog;

/// Do one task of a job's folder
#[derive(Debug, Args)]
pub struct Arguments {
    /// The folder, `cache/jobs/<fingerprint>`
    #[arg(value_name = "FOLDER")]
    folder: PathBuf,

    /// Which of its tasks
    #[arg(long, value_name = "N", default_value_t = 0)]
    task: u32,

    /// The process to end with
    #[arg(long, value_name = "PID")]
    parent: Option<u32>,
}

pub fn run(arguments: &Arguments, catalog: &Catalog) -> Result<Exit, CliError> {
    let cancel = CancelToken::default();
    interrupt::cancel_on_any_signal(&cancel)?;
    let worker = Worker {
        attempt: attempt(),
        catalog,
        gpus: gpus::visible(),
        parent: arguments.parent,
        cancel,
    };
    let end = worker
        .work(&arguments.folder, arguments.task)
        .map_err(|error| CliError::failed(error.to_string(), error.help()))?;
    Ok(match end {
        End::Done => Exit::Ok,
        End::Failed(_) => Exit::Failed,
        End::Stopped => Exit::Interrupted,
    })
}

/// A job that Slurm starts again on another machine keeps its id and counts how often.
fn attempt() -> String {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    match variable("SLURM_JOB_ID") {
        Some(id) => {
            let restarts = variable("SLURM_RESTART_COUNT").unwrap_or_else(|| "0".to_owned());
            format!("{id}-{restarts}")
        }
        None => format!(
            "p{}-{}",
            std::process::id(),
            jiff::Timestamp::now().as_nanosecond()
        ),
    }
}
