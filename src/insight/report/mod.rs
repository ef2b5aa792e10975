//! `report.html`: a run on one page that needs nothing else, neither network nor script.
//!
//! Each section comes from a file of its own and is left out where a run has nothing for it.

mod curves;
mod record;
mod rows;
mod samples;
mod scores;

pub(super) use record::state;
pub use scores::label;
pub(super) use scores::verdict;

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::roles::Roles;
use super::{InsightError, Tables, page, scores::scored};
use crate::cache::{Cache, CacheError};
use crate::runs::{self, Run};

/// A chart with its heading and a line on what it counts.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Card {
    pub(super) title: String,
    pub(super) note: String,
    /// Trusted markup.
    pub(super) svg: String,
}

#[derive(Serialize)]
struct Report {
    record: record::Section,
    rows: Vec<Card>,
    curves: Vec<Card>,
    scores: Vec<scores::Section>,
    /// What could not be told, and why.
    missing: Option<String>,
}

/// Draws the report of a run. `runs` is the folder of all records. Where another process holds the cache, or there is
/// none, the page has what the record tells and says what is missing.
pub fn report(
    runs: &Path,
    run: &Run,
    cache: Result<&Cache, &CacheError>,
) -> Result<String, InsightError> {
    let mut report = Report {
        record: record::section(run, cache.ok()),
        rows: Vec::new(),
        curves: curves::cards(&runs::curves(runs, run)?),
        scores: Vec::new(),
        missing: None,
    };
    let found = cache
        .map_err(ToString::to_string)
        .and_then(|cache| from_tables(run, cache).map_err(|error| error.to_string()));
    match found {
        Ok((rows, scores)) => (report.rows, report.scores) = (rows, scores),
        Err(error) => {
            report.missing = Some(format!(
                "Rows, scores and samples are not shown: {error}. Draw the report again with “flow report {}”.",
                run.id()
            ));
        }
    }
    Ok(page::render("report.html", &report)?)
}

/// Draws the report into the run's folder and gives its place.
pub fn write(
    runs: &Path,
    run: &Run,
    cache: Result<&Cache, &CacheError>,
) -> Result<PathBuf, InsightError> {
    let path = run.folder.join("report.html");
    crate::atomic::write(&path, report(runs, run, cache)?.as_bytes())?;
    Ok(path)
}

fn from_tables(run: &Run, cache: &Cache) -> Result<(Vec<Card>, Vec<scores::Section>), CacheError> {
    let tables = Tables::new(run, cache)?;
    let roles = Roles::of(&tables);
    let scored = scored(run);
    let rows = rows::cards(&tables, &roles, &scored)?;
    let scores = scored
        .iter()
        .filter_map(|scored| scores::section(&tables, &roles, scored).transpose())
        .collect::<Result<_, _>>()?;
    Ok((rows, scores))
}
