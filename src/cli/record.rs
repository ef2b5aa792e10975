//! Finds the record of a run for the commands that look at one.

use std::path::PathBuf;

use super::error::{CliError, Exit};
use super::folders::Folders;
use crate::runs::{self, FindError, OutputError, Run, RunView};

/// The folder of the run that `name` means.
pub fn find(folders: &Folders, name: &str) -> Result<PathBuf, CliError> {
    Ok(runs::find(&folders.runs, name)?)
}

/// The whole record of the run that `name` means.
pub fn show(folders: &Folders, name: &str) -> Result<RunView, CliError> {
    let folder = find(folders, name)?;
    runs::show(&folder).map_err(|error| {
        CliError::failed(
            format!("the record of the run `{name}` cannot be read: {error}"),
            None,
        )
    })
}

/// The record of the run that `name` means, with its graph.
pub fn read(folders: &Folders, name: &str) -> Result<Run, CliError> {
    Run::read(&find(folders, name)?).map_err(|error| {
        CliError::failed(
            format!("the record of the run `{name}` cannot be read: {error}"),
            None,
        )
    })
}

impl From<FindError> for CliError {
    fn from(error: FindError) -> Self {
        let exit = if matches!(error, FindError::Io(_)) {
            Exit::Failed
        } else {
            Exit::Wrong
        };
        Self::Message {
            message: error.to_string(),
            help: error.help(),
            exit,
        }
    }
}

impl From<OutputError> for CliError {
    fn from(error: OutputError) -> Self {
        Self::wrong(error.to_string(), error.help())
    }
}
