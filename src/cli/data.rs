//! `flow data`: what a node gave in a run.

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
use crate::cache::{Artifact, Cache, CacheError};
use crate::config::{ArtifactKind, suggest};
use crate::runs::{OutputView, RunView};
use crate::ui::{bytes, count, table};

/// How many rows are shown where no limit is given and people read.
const SHOWN: usize = 20;

/// Show, query or export what a node gave in a run
#[derive(Debug, Args)]
pub struct Arguments {
    /// An id, the beginning of one, `latest`, or `latest~1` for the one before
    #[arg(value_name = "RUN")]
    run: String,

    /// A node or stage, with the output's name where it has several: `split.train`
    #[arg(value_name = "NODE[.OUTPUT]")]
    output: String,

    /// At most so many rows [default: 20 on screen, else all]
    #[arg(long, value_name = "N")]
    limit: Option<usize>,

    /// Ask this SQL query instead; the table is called `data`
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
    let view = record::show(&folders, &arguments.run)?;
    let found = find(&view, &arguments.output)?;
    let cache = Cache::open_read_only(&view.head.cache)?;
    let artifact = Artifact {
        kind: found.kind,
        digest: found.digest,
        rows: found.rows,
        bytes: found.bytes,
    };
    match artifact.kind {
        ArtifactKind::Table => rows(arguments, &cache, artifact, output)?,
        ArtifactKind::Files => files(arguments, &cache.object_path(&artifact.digest), output)?,
    }
    Ok(Exit::Ok)
}

/// The output that `name` means: `node`, `node.output`, `stage` or `stage.output`.
fn find<'a>(view: &'a RunView, name: &str) -> Result<&'a OutputView, CliError> {
    let name = view.head.exports.get(name).map_or(name, String::as_str);
    let all = || {
        view.nodes.iter().flat_map(|node| {
            node.outputs
                .iter()
                .map(move |output| (format!("{}.{}", node.name, output.name), output))
        })
    };
    if let Some((_, output)) = all().find(|(full, _)| full == name) {
        return Ok(output);
    }
    let node = view.node(name);
    match node.map(|node| node.outputs.as_slice()) {
        Some([only]) => return Ok(only),
        Some([]) => {
            return Err(CliError::wrong(
                format!("`{name}` gave nothing in the run {}", view.head.id),
                format!("`flow why {} {name}` says what happened", view.head.id),
            ));
        }
        Some(several) => {
            let names = several
                .iter()
                .map(|output| format!("{name}.{}", output.name))
                .collect::<Vec<_>>();
            return Err(CliError::wrong(
                format!("`{name}` has several outputs"),
                format!(
                    "name one: {}",
                    suggest::list(names.iter().map(String::as_str))
                ),
            ));
        }
        None => {}
    }
    // A stage: its one output, or the list of them.
    let of_stage: Vec<_> = view
        .head
        .exports
        .iter()
        .filter(|(full, _)| full.split_once('.').is_some_and(|(stage, _)| stage == name))
        .collect();
    if let [(_, target)] = of_stage.as_slice()
        && let Some((_, output)) = all().find(|(full, _)| full == *target)
    {
        return Ok(output);
    }
    let names: Vec<String> = if of_stage.is_empty() {
        all()
            .map(|(full, _)| full)
            .chain(view.head.exports.keys().cloned())
            .collect()
    } else {
        of_stage.iter().map(|(full, _)| (*full).clone()).collect()
    };
    let names = || names.iter().map(String::as_str);
    let guess = suggest::closest(name, names())
        .map(|name| format!("did you mean `{name}`? "))
        .unwrap_or_default();
    Err(CliError::wrong(
        format!("the run {} has no output `{name}`", view.head.id),
        format!("{guess}there are {}", suggest::list(names())),
    ))
}

fn rows(
    arguments: &Arguments,
    cache: &Cache,
    artifact: Artifact,
    output: &Output,
) -> Result<(), CliError> {
    let total = artifact.rows;
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
    let inputs = BTreeMap::from([("data".to_owned(), artifact)]);
    if let Some(file) = &arguments.export {
        cache.with_views(&inputs, |connection| {
            check(connection, asked)?;
            export(connection, &query, file)
        })?;
        output.tell(&format!("written to `{}`", file.display()));
        return Ok(());
    }
    let found = cache.with_views(&inputs, |connection| {
        check(connection, asked)?;
        Rows::read(connection, &query)
    })?;
    if arguments.json {
        return output.print_json(&found.into_json());
    }
    output.print(&found.as_text(output.width))?;
    if let (None, None, Some(total)) = (&arguments.sql, arguments.limit, total)
        && total > found.rows.len() as u64
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
            format!("`{}` is files, not a table", arguments.output),
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
