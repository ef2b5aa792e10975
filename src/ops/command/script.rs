//! Runs the script of a `command`: what it sees, and what becomes of its end.

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command as Process;
use std::time::{Duration, Instant};

use fs_err as fs;

use super::supervise::{SHELL, supervise};
use super::{Params, variable};
use crate::cache::{Artifact, quote};
use crate::config::ArtifactKind;
use crate::ops::{Context, OpError, Outputs};

/// Taken over from flow's own environment; none of them may change what a script computes.
const KEPT: [&str; 5] = ["PATH", "HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH"];

/// Runs the script to its end.
///
/// # Errors
/// An exit code other than 0, a time-out, an interrupt; nothing of `$OUT` is kept then.
pub fn run(context: &mut Context) -> Result<Outputs, OpError> {
    let params: Params = context.params()?;
    // Nothing of an earlier, unfinished try is used again.
    let [work, out, inputs] = ["work", "out", "in"].map(|name| context.scratch.join(name));
    for folder in [&work, &out, &inputs] {
        match fs::remove_dir_all(folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
    }
    fs::create_dir(&work)?;
    fs::create_dir(&out)?;
    let mut process = Process::new(SHELL);
    process
        .args(["-e", "-c", &params.run])
        .current_dir(&work)
        .env_clear();
    let kept = KEPT
        .iter()
        .copied()
        .chain(params.pass_env.iter().map(String::as_str));
    process.envs(kept.filter_map(|name| Some((name, std::env::var_os(name)?))));
    process.envs(&params.env);
    for (port, artifact) in context.inputs.clone() {
        process.env(variable(&port), place(context, &port, &artifact, &inputs)?);
    }
    // Without a newline at the end, so that `< "$FILES"` reads the one there is.
    let mut files = OsString::new();
    for index in 0..params.files.len() {
        let file = context
            .paths
            .get(&format!("files.{index}"))
            .ok_or_else(|| OpError::new(format!("`files.{index}` was not found")))?;
        if index > 0 {
            files.push("\n");
        }
        files.push(std::path::absolute(file)?);
    }
    process
        .env("FILES", files)
        .env("OUT", std::path::absolute(&out)?);
    if !context.gpus.is_empty() {
        let gpus: Vec<_> = context.gpus.iter().map(u32::to_string).collect();
        process.env("CUDA_VISIBLE_DEVICES", gpus.join(","));
    }
    let deadline = params
        .timeout
        .filter(|seconds| seconds.is_finite())
        .map(|seconds| Instant::now() + Duration::from_secs_f64(seconds));
    let (status, tail) = supervise(context, process, deadline)?;
    if !status.success() {
        let end = match (status.code(), status.signal()) {
            (Some(code), _) => format!("the script ended with exit code {code}"),
            (None, signal) => format!(
                "the script was ended by signal {}",
                signal.unwrap_or_default()
            ),
        };
        let shown: String = tail.iter().map(|line| format!("\n  {line}")).collect();
        return Err(OpError::with_help(
            format!("{end}{shown}"),
            "its whole output is in the node's log",
        ));
    }
    context.give_files("out", &out)?;
    context.finish()
}

/// An input as a path: files where they lie, a table as a Parquet file with its rows in a fixed order.
fn place(
    context: &Context,
    port: &str,
    artifact: &Artifact,
    folder: &Path,
) -> Result<PathBuf, OpError> {
    if artifact.kind == ArtifactKind::Files {
        return Ok(std::path::absolute(
            context.cache().object_path(&artifact.digest),
        )?);
    }
    fs::create_dir_all(folder)?;
    let path = std::path::absolute(folder.join(format!(
        "{}.parquet",
        variable(port).trim_start_matches("IN_")
    )))?;
    let columns = context.cache().columns(&artifact.digest)?;
    let order = if context.cache().is_ordered(&artifact.digest) {
        ""
    } else if columns.iter().any(|(name, _)| name == "id") {
        // Where an id is not unique the other columns decide.
        "order by id, all"
    } else {
        "order by all"
    };
    let order = if order == "order by id, all" {
        let rest = columns
            .iter()
            .filter(|(name, _)| name != "id")
            .map(|(name, _)| format!(", {}", quote(name)));
        format!("order by id{}", rest.collect::<String>())
    } else {
        order.to_owned()
    };
    let target = path.display().to_string().replace('\'', "''");
    context.with_inputs(|connection| {
        Ok(connection.execute_batch(&format!(
            "copy (select * from {} {order}) to '{target}' (format parquet)",
            quote(port)
        ))?)
    })?;
    Ok(path)
}
