//! The op `source`: data from outside to a table whose rows have an `id`, or to files as they are.
//!
//! A run is: find the format, read the rows into tables beside the cache's, [shape] them (names, ids, blank rows, sample),
//! give the result. Reading is streamed; what does not fit the memory is spilled.

mod format;
mod medquad;
mod members;
mod params;
mod readers;
mod sample;
mod shape;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use fs_err as fs;

pub use format::Format;
pub use params::{Limit, Params};

use super::{Context, Op, OpError, Outputs, Problem, checker};
use crate::config::{Columns, Interface, display};
use crate::download;
use crate::graph::Node;

pub struct Source;

impl Op for Source {
    fn name(&self) -> &'static str {
        "source"
    }

    fn version(&self) -> u32 {
        1
    }

    fn interface(&self) -> Interface {
        params::interface()
    }

    /// The sample that `limit` draws depends on it.
    fn seeded(&self, node: &Node) -> bool {
        Params::of(node).is_ok_and(|params| params.limit != Limit::All)
    }

    fn outputs(&self, node: &Node) -> Vec<String> {
        let files = Params::of(node).is_ok_and(|params| {
            place(node).is_ok_and(|path| params.format_of(&path) == Ok(Format::Files))
        });
        vec![if files { "files" } else { "rows" }.to_owned()]
    }

    fn columns(
        &self,
        node: &Node,
        _inputs: &BTreeMap<String, Option<Columns>>,
    ) -> Result<BTreeMap<String, Option<Columns>>, Vec<Problem>> {
        let problem = |at: &str, error: OpError| {
            vec![Problem {
                at: at.to_owned(),
                help: error.help(),
                message: error.to_string(),
            }]
        };
        let params = Params::of(node).map_err(|problem| vec![problem])?;
        let path = place(node).map_err(|error| problem("path", error))?;
        let format = params.format_of(&path).map_err(|problem| vec![problem])?;
        if format == Format::Files {
            return Ok(BTreeMap::from([("files".to_owned(), None)]));
        }
        let read = match format {
            Format::Medquad => Some(readers::medquad_columns()),
            // Not downloaded yet.
            _ if !path.exists() => None,
            _ => {
                let described =
                    checker::with(|database| readers::describe(database, format, &path, &params));
                Some(
                    described
                        .map_err(OpError::from)
                        .flatten()
                        .map_err(|error| problem("path", error))?,
                )
            }
        };
        let shaped = read
            .map(|columns| shape::Shape::new(&params, &columns).map(|shape| shape.columns()))
            .transpose()?;
        Ok(BTreeMap::from([("rows".to_owned(), shaped)]))
    }
}

/// Where the data is on this machine.
fn place(node: &Node) -> Result<PathBuf, OpError> {
    let missing = || OpError::with_help("a source needs a `path`", "name a file or a folder");
    node.paths
        .get("path")
        .map(|input| input.path.clone())
        .ok_or_else(missing)
}

pub fn run(ctx: &mut Context) -> Result<Outputs, OpError> {
    let refuse = |problem: Problem| OpError::Failed {
        message: problem.message,
        help: problem.help,
    };
    let params = Params::of(ctx.node).map_err(refuse)?;
    // A download lies elsewhere than the param says.
    let path = ctx
        .paths
        .get("path")
        .cloned()
        .map_or_else(|| place(ctx.node), Ok)?;
    if let Some(expected) = params.digest {
        let shown = display(&path);
        download::check(&path, &shown, expected)
            .map_err(|error| OpError::with_help(error.to_string(), error.help()))?;
    }
    let format = params.format_of(&path).map_err(refuse)?;
    if format == Format::Files {
        fs::create_dir_all(&ctx.scratch)?;
        let folder = ctx.scratch.join("files");
        remove(&folder)?;
        copy(&path, &folder)?;
        ctx.give_files("files", &folder)?;
        return ctx.finish();
    }

    let connection = ctx.cache.workspace()?;
    let seed = ctx.node.seed;
    let mut tick = |done: u64, total: u64| {
        ctx.progress(done, total, "files", "");
        ctx.check_cancelled()
    };
    let skipped = readers::read(&connection, format, &path, &params, &mut tick)?;
    if let Some(warning) = readers::skipped(&skipped) {
        ctx.warn(warning);
        ctx.report("files_skipped", skipped.len() as f64);
    }
    let columns = readers::columns(&connection)?;
    let shape =
        shape::Shape::new(&params, &columns).map_err(|mut problems| refuse(problems.remove(0)))?;
    ctx.check_cancelled()?;
    let report = shape.make(&connection, &path, seed)?;
    for line in report.lines() {
        ctx.info(line);
    }
    for (name, value) in report.metrics() {
        ctx.report(&name, value as f64);
    }
    let rows = format!("select * from {}", connection.name_of(shape::ROWS));
    ctx.give_query("rows", &rows, &[])?;
    ctx.finish()
}

fn remove(path: &Path) -> Result<(), OpError> {
    match fs::symlink_metadata(path) {
        Err(_) => Ok(()),
        Ok(metadata) if metadata.is_dir() => Ok(fs::remove_dir_all(path)?),
        Ok(_) => Ok(fs::remove_file(path)?),
    }
}

/// Copies a file into `folder`, or a folder's content, following links.
fn copy(from: &Path, folder: &Path) -> Result<(), OpError> {
    fs::create_dir_all(folder)?;
    if !from.is_dir() {
        let name = from
            .file_name()
            .ok_or_else(|| OpError::new(format!("`{}` has no name", display(from))))?;
        fs::copy(from, folder.join(name))?;
        return Ok(());
    }
    for entry in fs::read_dir(from)? {
        let path = entry?.path();
        match path.file_name() {
            Some(name) if path.is_dir() => copy(&path, &folder.join(name))?,
            _ => copy(&path, folder)?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
