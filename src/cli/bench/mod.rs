//! `flow bench`: how fast this machine is, and what fits its memory.

#[cfg(feature = "torch")]
mod model;
mod train;

use clap::{Args, Subcommand};

use super::error::{CliError, Exit};
use super::handover;
use super::output::Output;

/// Measure this machine: training steps of a model
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    Train(train::Arguments),
}

/// Runs the benchmarks that need a language model; only `flow-lm` has it.
pub type ModelBench = fn(&Command, &Output) -> Result<Exit, CliError>;

pub fn run(
    arguments: &Arguments,
    model: Option<ModelBench>,
    output: &Output,
) -> Result<Exit, CliError> {
    match model {
        Some(model) => model(&arguments.command, output),
        None => Err(handover::to_language_model()),
    }
}

/// The [`ModelBench`] of `flow-lm`.
#[cfg(feature = "torch")]
pub fn with_model(command: &Command, output: &Output) -> Result<Exit, CliError> {
    match command {
        Command::Train(arguments) => train::run(arguments, output),
    }
}
