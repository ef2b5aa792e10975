//! Two or more runs side by side: what was asked differently, what came out differently, row by row where tables are there.
//!
//! The first run is the one that all others are compared with.

mod curves;
mod datasets;
mod group;
mod group_page;
mod metrics;
mod nodes;
mod page;

use std::path::Path;

use serde::Serialize;

pub use curves::CurveRow;
pub use datasets::{Dataset, Example};
pub use group::{Group, GroupMetric, VariantRow, group};
pub use group_page::group_page;
pub use metrics::{Change, MetricRow, Number, Sample};
pub use nodes::{NodeRow, Part, RowCount};
pub use page::{letter, page};

use super::{InsightError, Tables};
use crate::cache::{Cache, CacheError};
use crate::engine::RunState;
use crate::runs::Run;

/// The schema of `flow compare --json`. Lists by run are in the order of `runs`.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    pub runs: Vec<Side>,
    /// Parts of fingerprints that differ, but for inputs, which follow from others.
    pub params: Vec<Part>,
    /// Nodes that are not the same in all runs.
    pub nodes: Vec<NodeRow>,
    /// Rows of every table that a stage gives.
    pub rows: Vec<RowCount>,
    /// Means of scores that rows have, with paired differences.
    pub metrics: Vec<MetricRow>,
    /// Other final numbers that differ.
    pub numbers: Vec<Number>,
    /// The rows whose main score went up most, and down most.
    pub better: Vec<Sample>,
    pub worse: Vec<Sample>,
    /// Tables with ids that differ.
    pub datasets: Vec<Dataset>,
    pub curves: Vec<CurveRow>,
    /// What could not be told, and why.
    pub missing: Vec<String>,
}

#[derive(Debug, Clone, Serialize)]
pub struct Side {
    pub id: String,
    pub pipeline: String,
    pub profile: Option<String>,
    pub state: RunState,
    pub started: String,
    pub seconds: Option<f64>,
}

/// Compares the first of `runs` with each of the others; `folder` is that of all records. `cache` opens the cache of a run.
pub fn compare(
    folder: &Path,
    runs: &[Run],
    cache: impl Fn(&Path) -> Result<Cache, CacheError>,
) -> Result<Comparison, InsightError> {
    let mut missing = Vec::new();
    for run in runs.iter().filter(|run| run.graph.nodes.is_empty()) {
        missing.push(format!(
            "{} was recorded without its graph, so its params are not known",
            run.id()
        ));
    }
    let mut comparison = Comparison {
        runs: runs.iter().map(side).collect(),
        params: nodes::params(runs),
        nodes: nodes::nodes(runs),
        rows: nodes::rows(runs),
        metrics: Vec::new(),
        numbers: Vec::new(),
        better: Vec::new(),
        worse: Vec::new(),
        datasets: Vec::new(),
        curves: curves::rows(folder, runs)?,
        missing,
    };
    if let Err(error) = comparison.read_tables(runs, &cache) {
        comparison.missing.push(format!(
            "scores, samples and rows that came or went are not compared: {error}"
        ));
    }
    comparison.numbers = metrics::numbers(runs, &comparison.metrics);
    Ok(comparison)
}

impl Comparison {
    fn read_tables(
        &mut self,
        runs: &[Run],
        open: &impl Fn(&Path) -> Result<Cache, CacheError>,
    ) -> Result<(), CacheError> {
        // Runs of one project share a cache, which is opened once.
        let mut caches: Vec<(&Path, Cache)> = Vec::new();
        for run in runs {
            let folder = run.view.head.cache.as_path();
            if !caches.iter().any(|(known, _)| *known == folder) {
                caches.push((folder, open(folder)?));
            }
        }
        let cache_of = |run: &Run| {
            let folder = run.view.head.cache.as_path();
            caches
                .iter()
                .find_map(|(known, cache)| (*known == folder).then_some(cache))
        };
        let mut tables = Vec::with_capacity(runs.len());
        for run in runs {
            if let Some(cache) = cache_of(run) {
                tables.push(Tables::new(run, cache)?);
            }
        }
        self.metrics = metrics::rows(&tables)?;
        (self.better, self.worse) = metrics::samples(&tables)?;
        self.datasets = datasets::datasets(&tables)?;
        Ok(())
    }
}

fn side(run: &Run) -> Side {
    let head = run.view.head.clone();
    Side {
        id: head.id,
        pipeline: head.pipeline,
        profile: head.profile,
        state: head.state,
        started: head.started,
        seconds: head.seconds,
    }
}
