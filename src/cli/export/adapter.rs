//! `flow export --adapter`: the adapter as PEFT reads it.

use std::path::Path;

use crate::cli::error::CliError;
use crate::cli::output::Output;
use crate::cli::trained::Trained;
use crate::config::display;

pub fn write(trained: &Trained, folder: &Path, output: &Output) -> Result<(), CliError> {
    fs_err::create_dir_all(folder)?;
    for entry in fs_err::read_dir(&trained.adapter)? {
        let entry = entry?;
        fs_err::copy(entry.path(), folder.join(entry.file_name()))?;
    }
    output.print(&display(folder))
}
