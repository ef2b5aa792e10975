//! `flow export --wandb`: what was tracked, as the official client keeps it offline.

use std::path::Path;

use crate::cli::error::CliError;
use crate::cli::folders::Folders;
use crate::cli::output::Output;
use crate::cli::sync::journal;
use crate::config::display;
use crate::tracking::{Failure, Head, Sent, base_url, export};

pub fn write(folders: &Folders, run: &str, folder: &Path, output: &Output) -> Result<(), CliError> {
    let journal = journal(folders, run)?;
    let written = export::export(&journal, folder)?;
    let sent = Head::read(&journal)
        .ok()
        .and_then(|head| base_url(&head.base_url, "run.json").ok())
        .and_then(|address| Sent::read(&journal, &address).ok());
    if let Some(sent) = sent.filter(|sent| sent.history > 0) {
        output.warning(&format!(
            "{} has rows of this run already; `wandb sync` would add them there again",
            sent.base_url
        ));
    }
    output.print(&display(&written))
}

impl From<Failure> for CliError {
    fn from(failure: Failure) -> Self {
        let exists = matches!(&failure, Failure::Journal(error) if error.kind() == std::io::ErrorKind::AlreadyExists);
        let help = exists.then(|| "remove it first, or name another folder".to_owned());
        Self::failed(failure.to_string(), help)
    }
}
