//! `flow bench`: how fast this machine is, and what fits its memory.

mod cache;
mod data;
mod embed;
mod generate;
mod judge;
#[cfg(feature = "torch")]
mod model;
mod process;
mod quant;
#[cfg(feature = "torch")]
mod repeated;
#[cfg(feature = "torch")]
mod sheet;
#[cfg(feature = "torch")]
mod spread;
mod train;

use clap::{Args, Subcommand};

use super::error::{CliError, Exit};
use super::handover;
use super::output::Output;
use crate::ops::Catalog;
pub use generate::positive;

/// Measure this machine: training steps, judge and generation of a model, sentence embeddings, the data stages, the cache's books
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(flatten)]
    Model(ModelCommand),
    Cache(cache::Arguments),
    Data(data::Arguments),
}

#[derive(Debug, Subcommand)]
pub enum ModelCommand {
    Train(train::Arguments),
    Judge(judge::Arguments),
    Generate(generate::Arguments),
    Embed(embed::Arguments),
}

/// Runs the benchmarks that need a language model; only `flow-lm` has it.
pub type ModelBench = fn(&ModelCommand, &Output) -> Result<Exit, CliError>;

pub fn run(
    arguments: &Arguments,
    catalog: &Catalog,
    model: Option<ModelBench>,
    output: &Output,
) -> Result<Exit, CliError> {
    match (&arguments.command, model) {
        (Command::Cache(arguments), _) => cache::run(arguments, output),
        (Command::Data(arguments), _) => data::run(arguments, catalog, output),
        (Command::Model(command), Some(model)) => model(command, output),
        (Command::Model(_), None) => Err(handover::to_language_model()),
    }
}

/// The [`ModelBench`] of `flow-lm`.
#[cfg(feature = "torch")]
pub fn with_model(command: &ModelCommand, output: &Output) -> Result<Exit, CliError> {
    match command {
        ModelCommand::Train(arguments) => train::run(arguments, output),
        ModelCommand::Judge(arguments) => judge::run(arguments, output),
        ModelCommand::Generate(arguments) => generate::run(arguments, output),
        ModelCommand::Embed(arguments) => embed::run(arguments, output),
    }
}
