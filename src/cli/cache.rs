//! `flow cache`: how big it is, dropping what nothing needs, checking it by content.

use clap::{Args, Subcommand};
use serde_json::json;

use super::error::{CliError, Exit};
use super::folders::Folders;
use super::output::Output;
use super::shared;
use crate::cache::{Cache, CacheError, Holder, RunLock};
use crate::graph::Fingerprint;
use crate::runs;
use crate::ui::{bytes, count, plural, table};

/// Look after the cache of the project
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(subcommand)]
    action: Option<Action>,

    /// Print the answer as JSON
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// How much there is [default]
    Size {
        /// Count what is in the shared cache too
        #[arg(long)]
        remote: bool,
    },
    /// Send results that are here and not in the shared cache
    ///
    /// The shared cache is the one of `FLOW_CACHE_REMOTE`, else the one that the last run used.
    Push,
    /// Fetch what results known here gave and only the shared cache has
    Pull,
    /// Drop results that the latest runs did not use
    Gc {
        /// Keep what this many of the latest runs used
        #[arg(long, value_name = "N", default_value_t = 10)]
        keep_runs: usize,

        /// Keep only as many of them as fit into this size, such as `20GiB`; the latest is kept always
        #[arg(long, value_name = "SIZE", value_parser = parse_size)]
        max_size: Option<u64>,
    },
    /// Read everything and compare it with its digest; what is damaged is forgotten and made again by the next run
    Verify,
}

pub fn run(arguments: &Arguments, output: &Output) -> Result<Exit, CliError> {
    let folders = Folders::of_working_folder();
    match &arguments.action {
        None => size(&folders, false, arguments.json, output),
        Some(Action::Size { remote }) => size(&folders, *remote, arguments.json, output),
        Some(Action::Push) => shared::push(
            open(&folders, "cache push", output)?,
            &folders,
            arguments.json,
            output,
        ),
        Some(Action::Pull) => shared::pull(
            open(&folders, "cache pull", output)?,
            &folders,
            arguments.json,
            output,
        ),
        Some(Action::Gc {
            keep_runs,
            max_size,
        }) => gc(&folders, *keep_runs, *max_size, arguments.json, output),
        Some(Action::Verify) => verify(&folders, arguments.json, output),
    }
}

fn size(folders: &Folders, remote: bool, json: bool, output: &Output) -> Result<Exit, CliError> {
    let mut cache = Cache::open_read_only(&folders.cache)?;
    let size = cache.size()?;
    let there = if remote {
        cache.set_remote(shared::remote(folders)?);
        cache.shared_size().map_err(shared::failed)?
    } else {
        None
    };
    if json {
        let mut answer = json!(size);
        if let Some(there) = there {
            answer["remote"] = json!(there);
        }
        output.print_json(&answer)?;
        return Ok(Exit::Ok);
    }
    let rows = [
        ("results", count(size.entries as u64), String::new()),
        ("tables", count(size.tables as u64), String::new()),
        ("verdicts", count(size.verdicts), String::new()),
        ("database", String::new(), bytes(size.database_bytes)),
        (
            "files",
            count(size.objects as u64),
            bytes(size.object_bytes),
        ),
        ("unfinished", String::new(), bytes(size.partial_bytes)),
    ];
    let rows = rows.map(|(name, number, size)| vec![name.to_owned(), number, size]);
    output.print(&table(
        &[&folders.cache.display().to_string(), "number", "size"],
        &rows,
        None,
    ))?;
    if let Some(there) = there {
        let rows = [
            ("results", count(there.entries), String::new()),
            ("tables", count(there.tables), bytes(there.table_bytes)),
            ("files", count(there.files), bytes(there.content_bytes)),
        ];
        let rows = rows.map(|(name, number, size)| vec![name.to_owned(), number, size]);
        output.print(&table(&[&there.address, "number", "size"], &rows, None))?;
    }
    Ok(Exit::Ok)
}

fn gc(
    folders: &Folders,
    keep_runs: usize,
    max_size: Option<u64>,
    json: bool,
    output: &Output,
) -> Result<Exit, CliError> {
    let heads = runs::list(&folders.runs)?;
    if heads.is_empty() && keep_runs > 0 {
        let message = format!(
            "there are no runs in `{}`, so nothing tells which results are needed",
            folders.runs.display()
        );
        return Err(CliError::wrong(
            message,
            "`--keep-runs 0` drops all of them",
        ));
    }
    let mut keep: Vec<Vec<Fingerprint>> = Vec::new();
    for head in heads.iter().take(keep_runs) {
        let view = runs::show(&folders.runs.join(&head.id))?;
        keep.push(
            view.nodes
                .iter()
                .filter_map(|node| node.fingerprint)
                .collect(),
        );
    }
    let collected = open(folders, "cache gc", output)?.gc(&keep, max_size)?;
    if let Some(max) = max_size.filter(|&max| collected.kept_bytes > max) {
        output.warning(&format!(
            "the latest run alone needs {}, more than {}; `--keep-runs 0` drops it too",
            bytes(collected.kept_bytes),
            bytes(max)
        ));
    }
    if json {
        output.print_json(&json!(collected))?;
    } else {
        let text = format!(
            "kept what {} used, {}; dropped {} results ({} tables, {} sets of files), {} smaller",
            plural(collected.kept_runs as u64, "run"),
            bytes(collected.kept_bytes),
            collected.entries,
            collected.tables,
            collected.objects,
            bytes(collected.bytes)
        );
        output.print(&text)?;
    }
    Ok(Exit::Ok)
}

fn verify(folders: &Folders, json: bool, output: &Output) -> Result<Exit, CliError> {
    let verified = open(folders, "cache verify", output)?.verify()?;
    if json {
        output.print_json(&json!(verified))?;
    } else {
        for damage in &verified.damaged {
            let nodes = damage
                .nodes
                .iter()
                .map(|node| format!("`{node}`"))
                .collect::<Vec<_>>()
                .join(", ");
            output.print(&format!(
                "{}: {}; made by {nodes}, which will run again",
                damage.digest.short(),
                damage.problem
            ))?;
        }
        output.print(&format!(
            "{} artifacts checked, {} damaged",
            verified.artifacts,
            verified.damaged.len()
        ))?;
    }
    Ok(if verified.damaged.is_empty() {
        Exit::Ok
    } else {
        Exit::Failed
    })
}

/// Opens the cache for writing; a run that is on is not waited for.
pub fn open(folders: &Folders, command: &str, output: &Output) -> Result<Cache, CliError> {
    let mut holder = None;
    let lock = RunLock::acquire(&folders.cache, &Holder::new(command), |found| {
        holder = found.cloned();
        false
    });
    match lock {
        Ok(lock) => {
            let cache = Cache::open(&folders.cache, lock)?;
            if let Some(recovered) = cache.recovered() {
                output.warning(&recovered.to_string());
            }
            Ok(cache)
        }
        Err(CacheError::Interrupted) => {
            let holder =
                holder.map_or_else(|| "another process".to_owned(), |holder| holder.to_string());
            Err(CliError::failed(
                format!(
                    "the cache `{}` is used by {holder}",
                    folders.cache.display()
                ),
                Some("try again when it has finished".to_owned()),
            ))
        }
        Err(error) => Err(error.into()),
    }
}

/// `20GiB`, `500MB`, `1000000`.
fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let split = text
        .find(|character: char| !character.is_ascii_digit() && character != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor: f64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        "tb" => 1e12,
        "k" | "kib" => 1024.0,
        "m" | "mib" => 1024_f64.powi(2),
        "g" | "gib" => 1024_f64.powi(3),
        "t" | "tib" => 1024_f64.powi(4),
        other => {
            return Err(format!(
                "`{other}` is no unit of size; write for example `20GiB`"
            ));
        }
    };
    let number: f64 = number
        .parse()
        .map_err(|_| format!("`{text}` is no size; write for example `20GiB`"))?;
    Ok((number * factor) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(parse_size("20GiB"), Ok(20 << 30));
        assert_eq!(parse_size("1.5 MB"), Ok(1_500_000));
        assert_eq!(parse_size("42"), Ok(42));
        assert!(parse_size("many").is_err() && parse_size("3 parsecs").is_err());
    }
}
