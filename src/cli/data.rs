//! `flow data`: what nodes gave in a run.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;
use duckdb::Connection;
use serde_json::Value;

use super::error::{CliError, Exit};
use super::folders::Folders;
use super::output::Output;
use super::record;
use super::rows::Rows;
use super::shared;
use crate::cache::{Artifact, Cache, CacheError, named_views};
use crate::config::ArtifactKind;
use crate::runs::{NodeOutput, OutputView, Run};
use crate::ui::{bytes, count, table};

/// How many rows are shown where no limit is given and people read.
const SHOWN: usize = 20;

/// Show, query or export what nodes gave in a run
///
/// Without a node: lists everything there is. `--sql` reaches every table by its name, as in
/// `flow data latest --sql "select question_type, count(*) from split.train group by all"`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// An id, the beginning of one, `latest`, or `latest~1` for the one before
    #[arg(value_name = "RUN")]
    run: String,

    /// A node or stage, with the output's name where it has several: `split.train`
    #[arg(value_name = "NODE[.OUTPUT]")]
    output: Option<String>,

    /// At most so many rows [default: 20 on screen, else all]
    #[arg(long, value_name = "N")]
    limit: Option<usize>,

    /// Ask this SQL query instead; tables have the names of their stages and nodes, the one that is named is also `data`
    #[arg(long, value_name = "QUERY")]
    sql: Option<String>,

    /// Write into this file (.csv, .parquet, .json, .jsonl), or folder where the output is files
    #[arg(long, value_name = "FILE")]
    export: Option<PathBuf>,

    /// Print an array of row objects
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &Arguments, output: &Output) -> Result<Exit, CliError> {
    let folders = Folders::of_working_folder();
    let run = record::read(&folders, &arguments.run)?;
    let named = arguments
        .output
        .as_ref()
        .map(|name| run.view.output(name))
        .transpose()?;
    let wanted = wanted(&run, named.as_ref().map(|found| found.output), arguments);
    shared::ensure(&run.view.head.cache, &wanted, output)?;
    match named {
        Some(found) if found.output.kind == ArtifactKind::Files => {
            let cache = Cache::open_read_only(&run.view.head.cache)?;
            files(arguments, &cache.object_path(&found.output.digest), output)?;
        }
        Some(found) => rows(arguments, &run, Some(found.output), output)?,
        None if arguments.sql.is_some() => rows(arguments, &run, None, output)?,
        None if arguments.export.is_some() => {
            return Err(CliError::wrong(
                "there is nothing to export yet",
                "name a node or stage, or give a query with `--sql`",
            ));
        }
        None => outputs(arguments, &run, output)?,
    }
    Ok(Exit::Ok)
}

/// Everything the run has, by the name to ask for it.
fn outputs(arguments: &Arguments, run: &Run, output: &Output) -> Result<(), CliError> {
    let found = run.outputs();
    if arguments.json {
        let entry = |found: &NodeOutput| serde_json::json!({ "name": run.short_name(&found.full()), "node": found.node, "output": found.output });
        return output.print_json(&Value::Array(found.iter().map(entry).collect()));
    }
    let rows: Vec<_> = found
        .iter()
        .map(|found| {
            let kind = match found.output.kind {
                ArtifactKind::Table => "table",
                ArtifactKind::Files => "files",
            };
            vec![
                run.short_name(&found.full()),
                kind.to_owned(),
                found.output.rows.map(count).unwrap_or_default(),
                bytes(found.output.bytes),
            ]
        })
        .collect();
    output.print(&table(&["output", "kind", "rows", "size"], &rows, None))
}

/// What has to be here: the output that was named, and tables whose names are in the query.
fn wanted(run: &Run, named: Option<&OutputView>, arguments: &Arguments) -> Vec<Artifact> {
    let sql = arguments.sql.as_deref().unwrap_or_default();
    let is_named = |name: &str| !sql.is_empty() && name.split('.').all(|part| sql.contains(part));
    let tables = run.outputs().into_iter().filter(|found| {
        found.output.kind == ArtifactKind::Table
            && (is_named(&run.short_name(&found.full())) || is_named(found.node))
    });
    let mut wanted: Vec<Artifact> = tables.map(|found| found.output.artifact()).collect();
    let exports = run.view.head.exports.iter();
    for (_, target) in exports.filter(|(name, _)| is_named(name)) {
        let outputs = run.outputs();
        let found = outputs.iter().find(|found| found.full() == *target);
        wanted.extend(found.map(|found| found.output.artifact()));
    }
    wanted.extend(named.map(OutputView::artifact));
    wanted
}

/// A connection with all tables of the run by their names, and `data` for the one that was named.
fn connect(run: &Run, named: Option<&OutputView>) -> Result<Connection, CliError> {
    let mut tables: BTreeMap<String, Artifact> = BTreeMap::new();
    for found in run.outputs() {
        let (full, artifact) = (found.full(), found.output.artifact());
        let exported = run.view.head.exports.iter();
        let exported = exported.filter(|(_, target)| **target == full);
        tables.extend(exported.map(|(name, _)| (name.clone(), artifact.clone())));
        tables.insert(run.short_name(&full), artifact.clone());
        if run
            .view
            .node(found.node)
            .is_some_and(|node| node.outputs.len() == 1)
        {
            tables.insert(found.node.to_owned(), artifact.clone());
        }
        tables.insert(full, artifact);
    }
    if let Some(output) = named {
        tables.insert("data".to_owned(), output.artifact());
    }
    let names = tables
        .iter()
        .map(|(name, artifact)| (name.as_str(), artifact));
    Ok(named_views(&run.view.head.cache, names)?)
}

fn rows(
    arguments: &Arguments,
    run: &Run,
    named: Option<&OutputView>,
    output: &Output,
) -> Result<(), CliError> {
    let limit = arguments
        .limit
        .or((!arguments.json && arguments.export.is_none()).then_some(SHOWN));
    let asked = arguments
        .sql
        .as_deref()
        .unwrap_or("from data")
        .trim()
        .trim_end_matches(';');
    let query = match limit {
        Some(limit) => format!("from (\n{asked}\n) limit {limit}"),
        None => asked.to_owned(),
    };
    let connection = connect(run, named)?;
    check(&connection, asked)?;
    if let Some(file) = &arguments.export {
        export(&connection, &query, file)?;
        output.tell(&format!("written to `{}`", file.display()));
        return Ok(());
    }
    let found = Rows::read(&connection, &query)?;
    if arguments.json {
        return output.print_json(&found.into_json());
    }
    output.print_cut(&found.as_text(output.width), "`--json` shows it whole")?;
    if let (None, None, Some(total)) = (
        &arguments.sql,
        arguments.limit,
        named.and_then(|output| output.rows),
    ) && total > found.rows.len() as u64
    {
        output.tell(&format!(
            "{} of {} rows; `--limit` shows more",
            found.rows.len(),
            count(total)
        ));
    }
    Ok(())
}

/// Fails as the user's own query does, with the right line.
fn check(connection: &Connection, query: &str) -> Result<(), CliError> {
    connection
        .prepare(query)
        .map_err(|error| CacheError::Query(error.to_string()))?;
    Ok(())
}

fn export(connection: &Connection, query: &str, file: &Path) -> Result<(), CliError> {
    let options = match file.extension().and_then(|extension| extension.to_str()) {
        Some("csv") => "format csv, header true",
        Some("parquet") => "format parquet, compression zstd",
        Some("json") => "format json, array true",
        Some("jsonl") => "format json",
        _ => {
            return Err(CliError::wrong(
                format!(
                    "the format of `{}` is not clear from its name",
                    file.display()
                ),
                "end it in .csv, .parquet, .json or .jsonl",
            ));
        }
    };
    let target = file.display().to_string().replace('\'', "''");
    let failed = |error: duckdb::Error| CacheError::Query(error.to_string());
    connection
        .execute_batch(&format!("copy (\n{query}\n) to '{target}' ({options})"))
        .map_err(failed)?;
    Ok(())
}

fn files(arguments: &Arguments, folder: &Path, output: &Output) -> Result<(), CliError> {
    if arguments.sql.is_some() || arguments.limit.is_some() {
        return Err(CliError::wrong(
            format!(
                "`{}` is files, not a table",
                arguments.output.as_deref().unwrap_or_default()
            ),
            "leave out `--sql` and `--limit`",
        ));
    }
    let found = list(folder)?;
    if let Some(target) = &arguments.export {
        if target.exists() {
            return Err(CliError::wrong(
                format!("`{}` is there already", target.display()),
                "name a folder that is not",
            ));
        }
        for (name, _) in &found {
            let to = target.join(name);
            fs_err::create_dir_all(to.parent().unwrap_or(target))?;
            fs_err::copy(folder.join(name), to)?;
        }
        output.tell(&format!(
            "{} files written to `{}`",
            found.len(),
            target.display()
        ));
        return Ok(());
    }
    if arguments.json {
        let file = |(name, size): &(PathBuf, u64)| serde_json::json!({ "path": folder.join(name), "bytes": size });
        return output.print_json(&Value::Array(found.iter().map(file).collect()));
    }
    let rows: Vec<_> = found
        .iter()
        .map(|(name, size)| vec![name.display().to_string(), bytes(*size)])
        .collect();
    output.print(&format!(
        "{}\n{}",
        folder.display(),
        table(&["file", "size"], &rows, None)
    ))
}

/// All files below a folder with their sizes, by relative path.
fn list(folder: &Path) -> Result<Vec<(PathBuf, u64)>, CliError> {
    let (mut files, mut pending) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(next) = pending.pop() {
        for entry in fs_err::read_dir(&next)? {
            let path = entry?.path();
            if path.is_dir() {
                pending.push(path);
            } else {
                let size = fs_err::metadata(&path)?.len();
                files.push((path.strip_prefix(folder).unwrap_or(&path).to_owned(), size));
            }
        }
    }
    files.sort();
    Ok(files)
}
