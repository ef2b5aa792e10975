//! `flow bench`: how fast this machine is, and what fits its memory.

mod generate;
mod judge;
#[cfg(feature = "torch")]
mod model;
mod quant;
#[cfg(feature = "torch")]
mod spread;
mod train;

use clap::{Args, Subcommand};

use super::error::{CliError, Exit};
use super::handover;
use super::output::Output;

/// Measure this machine: training steps, judge and generation of a model
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    Train(train::Arguments),
    Judge(judge::Arguments),
    Generate(generate::Arguments),
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
        Command::Judge(arguments) => judge::run(arguments, output),
        Command::Generate(arguments) => generate::run(arguments, output),
    }
}
