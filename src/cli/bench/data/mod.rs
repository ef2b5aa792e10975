//! `flow bench data`: seconds and peak memory of the SQL stages by number of rows, beside DuckDB alone on the same SQL.

mod measure;
mod peer;
mod project;
mod report;
mod rows;

use std::path::PathBuf;
use std::process::{Command, Stdio};

use clap::Args;
use fs_err as fs;

use super::super::error::{CliError, Exit};
use super::super::output::Output;
use crate::ops::Catalog;
use measure::Measured;
use report::{Measurement, Reading};
use rows::{FileFormat, Rows};

/// The mean length of MedQuAD's answers.
const MEDQUAD_ANSWER: u64 = 1303;

/// Measure the SQL stages and the sources on rows made like MedQuAD's
#[derive(Debug, Args)]
pub struct Arguments {
    /// Numbers of rows, in growing order
    #[arg(long, value_name = "N,N", value_delimiter = ',', default_value = "100000,1000000,10000000",
        value_parser = clap::value_parser!(u64).range(1000..))]
    rows: Vec<u64>,

    /// Mean characters of an answer. MedQuAD has 1303; a tenth of it keeps ten million rows, which lie in the cache once
    /// per stage, below 6 GB of disk
    #[arg(long, value_name = "N", default_value_t = 130, value_parser = clap::value_parser!(u64).range(20..=4000))]
    answer: u64,

    /// A Python that has the package `duckdb`
    #[arg(long, value_name = "PROGRAM", default_value = "python3")]
    python: PathBuf,

    /// Work here instead of in the system's temporary folder
    #[arg(long, value_name = "FOLDER")]
    folder: Option<PathBuf>,

    /// Rows of the files that the sources are measured on; 0 leaves these out. Answers are as long as MedQuAD's there
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    source_rows: u64,

    /// Print the measurement as JSON
    #[arg(long)]
    json: bool,

    /// Run this pipeline and print what its nodes took: the work of a child process
    #[arg(long, hide = true)]
    measure: Option<PathBuf>,
}

pub fn run(arguments: &Arguments, catalog: &Catalog, output: &Output) -> Result<Exit, CliError> {
    if let Some(pipeline) = &arguments.measure {
        let measured = measure::run(pipeline, catalog)?;
        output.print_json(&serde_json::to_value(measured).map_err(std::io::Error::from)?)?;
        return Ok(Exit::Ok);
    }
    let parent = arguments.folder.clone().unwrap_or_else(std::env::temp_dir);
    let folder = tempfile::tempdir_in(&parent).map_err(|error| {
        CliError::wrong(
            format!("no folder can be made in `{}`: {error}", parent.display()),
            "name another place with `--folder`",
        )
    })?;
    let peer = peer::find(&arguments.python)
        .inspect_err(|why| output.warning(&format!("DuckDB alone is left out: {why}")))
        .ok();
    let mut sizes = Vec::new();
    for &count in &arguments.rows {
        output.tell(&format!("{count} rows"));
        let place = folder.path().join(count.to_string());
        let file = place.join("rows.parquet");
        fs::create_dir_all(&place)?;
        let rows = Rows {
            count,
            answer: arguments.answer,
        };
        rows.write(&file, FileFormat::Parquet)?;
        let pipeline = project::whole(&place, "rows.parquet")?;
        let measured = in_a_child(&pipeline)?;
        fs::remove_dir_all(place.join("cache"))?;
        let alone = match &peer {
            Some(peer) => Some(peer.run(&place, &pipeline, catalog)?),
            None => None,
        };
        fs::remove_dir_all(&place)?;
        sizes.push(Measurement {
            rows: count,
            measured,
            alone,
        });
    }
    let mut readings = Vec::new();
    if arguments.source_rows > 0 {
        let rows = Rows {
            count: arguments.source_rows,
            answer: MEDQUAD_ANSWER,
        };
        for format in FileFormat::ALL {
            let place = folder.path().join(format.name());
            fs::create_dir_all(&place)?;
            let file = place.join(format.file());
            let bytes = rows.write(&file, format)?;
            let measured = in_a_child(&project::reading(&place, format.file())?)?;
            fs::remove_dir_all(&place)?;
            readings.push(Reading {
                format: format.name(),
                bytes,
                measured,
            });
        }
    }
    if arguments.json {
        output.print_json(&report::json(arguments.answer, &sizes, &readings))?;
    } else {
        output.print(&report::text(&sizes, &readings))?;
    }
    Ok(Exit::Ok)
}

/// A process of its own has a peak memory of its own.
fn in_a_child(pipeline: &std::path::Path) -> Result<Measured, CliError> {
    let program = std::env::current_exe()?;
    let ended = Command::new(program)
        .args(["bench", "data", "--measure"])
        .arg(pipeline)
        .stderr(Stdio::inherit())
        .output()?;
    if !ended.status.success() {
        return Err(CliError::failed(
            format!("the measured process ended with {}", ended.status),
            None,
        ));
    }
    Ok(serde_json::from_slice(&ended.stdout).map_err(std::io::Error::from)?)
}
