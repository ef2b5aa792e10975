//! `flow sync`: sends what is left of tracked runs.

use std::path::{Path, PathBuf};

use clap::Args;

use super::error::{CliError, Exit};
use super::folders::{Folders, environment};
use super::output::Output;
use super::{record, tracking};
use crate::tracking::{Failure, Head, Lock, Pace, base_url, folder_of, journals, progress, sync};
use crate::ui::plural;

/// Send what is left of a tracked run, or of all
///
/// Where to: `WANDB_BASE_URL`, else the server the run was meant for. The key comes from `WANDB_API_KEY` or ~/.netrc.
#[derive(Debug, Args)]
pub struct Arguments {
    /// An id, the beginning of one, `latest`, or `latest~1` for the one before [default: all runs]
    #[arg(value_name = "RUN")]
    run: Option<String>,
}

pub fn run(arguments: &Arguments, output: &Output) -> Result<Exit, CliError> {
    let folders = Folders::of_working_folder();
    let folders = match &arguments.run {
        Some(name) => vec![journal(&folders, name)?],
        None => journals(&folders.runs)?,
    };
    let (mut sent, mut failed) = (0, 0);
    for folder in &folders {
        match send(folder, output) {
            Ok(Some(line)) => {
                sent += 1;
                output.print(&line)?;
            }
            Ok(None) => {}
            Err(failure) => {
                failed += 1;
                let run = folder
                    .parent()
                    .and_then(Path::file_name)
                    .unwrap_or_default();
                output.failure(&format!("run {}: {failure}", run.display()), help(&failure));
            }
        }
    }
    if sent + failed == 0 {
        output.tell("there is nothing to send");
    }
    Ok(if failed == 0 { Exit::Ok } else { Exit::Failed })
}

/// The journal of a run, which may be that of the run it continues.
pub fn journal(folders: &Folders, name: &str) -> Result<PathBuf, CliError> {
    let run = record::find(folders, name)?;
    let folder = folder_of(&run);
    if folder.join("run.json").is_file() {
        return Ok(folder);
    }
    let id = run.file_name().unwrap_or_default().display().to_string();
    Err(CliError::wrong(
        format!("run {id} was not tracked"),
        "`WANDB_MODE=offline flow run …` tracks a run without sending anything",
    ))
}

/// What was sent; `None` where there was nothing to send.
fn send(folder: &Path, output: &Output) -> Result<Option<String>, Failure> {
    let head = Head::read(folder)?;
    let Some(_lock) = Lock::take(folder)? else {
        output.tell(&format!("run {} is on or being sent already", head.id));
        return Ok(None);
    };
    let address = environment("WANDB_BASE_URL").filter(|address| !address.trim().is_empty());
    let address = base_url(
        address.as_deref().unwrap_or(&head.base_url),
        "WANDB_BASE_URL",
    );
    let address = address.map_err(|error| Failure::Refused(error.to_string()))?;
    let before = progress(folder, &address)?;
    if !before.is_pending {
        return Ok(None);
    }
    let key = tracking::with_sources(None, &head.project, |sources| sources.key(&address));
    let Some(key) = key else {
        let host = address.host_str().unwrap_or_default();
        return Err(Failure::Refused(format!(
            "there is no API key for {host} in `WANDB_API_KEY` or ~/.netrc"
        )));
    };
    let sent = sync(folder, &address, &key, Pace::default())?;
    for (name, why) in &sent.left_out {
        output.warning(&format!("run {}: `{name}` was not taken: {why}", head.id));
    }
    Ok(Some(format!(
        "{}  {}  {}",
        head.id,
        plural(sent.history - before.acknowledged, "row"),
        sent.page(&head.id).unwrap_or_default()
    )))
}

fn help(failure: &Failure) -> Option<&'static str> {
    failure
        .is_passing()
        .then_some("what is left stays in the journal; try again later")
}
