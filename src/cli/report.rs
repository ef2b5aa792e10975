//! `flow report`: a run as a page.

use std::path::PathBuf;

use clap::Args;

use super::error::{CliError, Exit};
use super::folders::Folders;
use super::output::Output;
use super::record;
use crate::cache::Cache;
use crate::config::display;
use crate::insight::{InsightError, report};

/// Draw a run as one HTML page: graph, rows, curves, scores, samples, configuration
///
/// The page is written after every run that did something; this draws it anew.
#[derive(Debug, Args)]
pub struct Arguments {
    /// An id, the beginning of one, `latest`, or `latest~1` for the one before
    #[arg(value_name = "RUN", default_value = "latest")]
    run: String,

    /// Write into this file [default: report.html in the folder of the run]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub fn run(arguments: &Arguments, output: &Output) -> Result<Exit, CliError> {
    let folders = Folders::of_working_folder();
    let run = record::read(&folders, &arguments.run)?;
    let cache = Cache::open_to_glance(&run.view.head.cache);
    let cache = cache.as_ref();
    match &arguments.output {
        Some(path) => output.save(path, &report::report(&folders.runs, &run, cache)?)?,
        None => output.print(&display(&report::write(&folders.runs, &run, cache)?))?,
    }
    Ok(Exit::Ok)
}

impl From<InsightError> for CliError {
    fn from(error: InsightError) -> Self {
        match error {
            InsightError::Cache(error) => error.into(),
            other => Self::failed(other.to_string(), None),
        }
    }
}
