//! `flow export`: a run in the formats of other programs.

use std::path::PathBuf;

use clap::Args;

use super::error::{CliError, Exit};
use super::folders::Folders;
use super::output::Output;
use super::sync::journal;
use crate::config::display;
use crate::tracking::{Failure, Sent, base_url, export};

/// Write a run in a format of another program
#[derive(Debug, Args)]
pub struct Arguments {
    /// An id, the beginning of one, `latest`, or `latest~1` for the one before
    #[arg(value_name = "RUN", default_value = "latest")]
    run: String,

    /// Write what was tracked into a folder below DIR, for `wandb sync`
    #[arg(long, value_name = "DIR", required = true)]
    wandb: PathBuf,
}

pub fn run(arguments: &Arguments, output: &Output) -> Result<Exit, CliError> {
    let journal = journal(&Folders::of_working_folder(), &arguments.run)?;
    let written = export::export(&journal, &arguments.wandb)?;
    let sent = crate::tracking::Head::read(&journal)
        .ok()
        .and_then(|head| base_url(&head.base_url, "run.json").ok())
        .and_then(|address| Sent::read(&journal, &address).ok());
    if let Some(sent) = sent.filter(|sent| sent.history > 0) {
        output.warning(&format!(
            "{} has rows of this run already; `wandb sync` would add them there again",
            sent.base_url
        ));
    }
    output.print(&display(&written))?;
    Ok(Exit::Ok)
}

impl From<Failure> for CliError {
    fn from(failure: Failure) -> Self {
        let exists = matches!(&failure, Failure::Journal(error) if error.kind() == std::io::ErrorKind::AlreadyExists);
        let help = exists.then(|| "remove it first, or name another folder".to_owned());
        Self::failed(failure.to_string(), help)
    }
}
