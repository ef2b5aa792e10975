//! `flow export`: a run in the formats of other programs.

mod adapter;
mod dataset;
mod prov;
mod wandb;
#[cfg(feature = "torch")]
mod weights;

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use super::arguments::TrainedArguments;
use super::error::{CliError, Exit};
use super::folders::Folders;
use super::handover;
use super::output::Output;
use super::trained::Trained;

/// Write a run in the formats of other programs
///
/// Prints the path of each thing written. The merged model is made from the base as it was before it was rounded for
/// training; how far its logits are from base and adapter is said on standard error.
#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("what").required(true).multiple(true).args(["adapter", "merge", "gguf", "dataset", "prov", "wandb"])))]
pub struct Arguments {
    #[command(flatten)]
    trained: TrainedArguments,

    /// Write the adapter as a PEFT folder
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,

    /// Write base and adapter as one model: a folder of safetensors in bf16
    #[arg(long, value_name = "DIR")]
    merge: Option<PathBuf>,

    /// Write base and adapter as one model: a GGUF file
    #[arg(long, value_name = "FILE")]
    gguf: Option<PathBuf>,

    /// How the matrices of the GGUF are stored
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "f16")]
    gguf_format: Format,

    /// Write the tables of the training as a data set folder: Parquet and a card
    #[arg(long, value_name = "DIR")]
    dataset: Option<PathBuf>,

    /// Write where everything in the run came from, as W3C PROV-JSON
    #[arg(long, value_name = "FILE")]
    prov: Option<PathBuf>,

    /// Write what was tracked into a folder below DIR, for `wandb sync`
    #[arg(long, value_name = "DIR")]
    wandb: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    F16,
    #[value(name = "q8_0")]
    Q8_0,
}

/// Writes the exports that need a language model; only `flow-lm` can.
pub type ModelExport = fn(&Arguments, &Trained, &Output) -> Result<(), CliError>;

pub fn run(
    arguments: &Arguments,
    model: Option<ModelExport>,
    output: &Output,
) -> Result<Exit, CliError> {
    let of_model = arguments.merge.is_some() || arguments.gguf.is_some();
    if of_model && model.is_none() {
        return Err(handover::to_language_model());
    }
    let new = [
        &arguments.adapter,
        &arguments.merge,
        &arguments.gguf,
        &arguments.dataset,
        &arguments.prov,
    ];
    new.into_iter()
        .flatten()
        .try_for_each(|path| refuse_existing(path))?;
    let folders = Folders::of_working_folder();
    if let Some(file) = &arguments.prov {
        prov::write(&folders, &arguments.trained.run, file, output)?;
    }
    if let Some(folder) = &arguments.wandb {
        wandb::write(&folders, &arguments.trained.run, folder, output)?;
    }
    if !of_model && arguments.adapter.is_none() && arguments.dataset.is_none() {
        return Ok(Exit::Ok);
    }
    let trained = Trained::find(
        &folders,
        &arguments.trained.run,
        arguments.trained.node.as_deref(),
        arguments.trained.offline,
        output,
    )?;
    if let Some(folder) = &arguments.adapter {
        adapter::write(&trained, folder, output)?;
    }
    if let Some(folder) = &arguments.dataset {
        dataset::write(&trained, folder, output)?;
    }
    if let (true, Some(model)) = (of_model, model) {
        model(arguments, &trained, output)?;
    }
    Ok(Exit::Ok)
}

/// The [`ModelExport`] of `flow-lm`.
#[cfg(feature = "torch")]
pub fn with_model(
    arguments: &Arguments,
    trained: &Trained,
    output: &Output,
) -> Result<(), CliError> {
    weights::write(arguments, trained, output)
}

/// What is there is never overwritten or mixed with.
fn refuse_existing(path: &Path) -> Result<(), CliError> {
    let empty = || fs_err::read_dir(path).is_ok_and(|mut entries| entries.next().is_none());
    if path.exists() && !empty() {
        return Err(CliError::wrong(
            format!("`{}` is there already", path.display()),
            "remove it first, or name another place",
        ));
    }
    Ok(())
}
