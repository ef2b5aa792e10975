//! Curves of several runs by node and metric.

use std::path::Path;

use serde::Serialize;

use crate::runs::{Curve, Run, curves};

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CurveRow {
    pub node: String,
    pub metric: String,
    /// Steps and values by run; empty where a run has none. What is not finite is null.
    pub curves: Vec<Curve>,
}

pub(super) fn rows(folder: &Path, runs: &[Run]) -> std::io::Result<Vec<CurveRow>> {
    let all = runs
        .iter()
        .map(|run| curves(folder, run))
        .collect::<Result<Vec<_>, _>>()?;
    let mut names: Vec<&(String, String)> = all.iter().flat_map(|curves| curves.keys()).collect();
    names.sort();
    names.dedup();
    let row = |name: &(String, String)| CurveRow {
        node: name.0.clone(),
        metric: name.1.clone(),
        curves: all
            .iter()
            .map(|curves| curves.get(name).cloned().unwrap_or_default())
            .collect(),
    };
    Ok(names.into_iter().map(row).collect())
}
