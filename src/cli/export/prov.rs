//! `flow export --prov`: where everything in a run came from, for programs that read W3C PROV.

use std::path::Path;

use crate::atomic;
use crate::cli::error::CliError;
use crate::cli::folders::Folders;
use crate::cli::output::Output;
use crate::cli::record;
use crate::config::display;
use crate::insight::prov;

pub fn write(folders: &Folders, run: &str, file: &Path, output: &Output) -> Result<(), CliError> {
    let run = record::read(folders, run)?;
    if let Some(folder) = file.parent() {
        fs_err::create_dir_all(folder)?;
    }
    atomic::write(file, format!("{:#}\n", prov::document(&run)).as_bytes())?;
    output.print(&display(file))
}
