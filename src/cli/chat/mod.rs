//! `flow chat`: a conversation with the model that a run has trained.

use clap::Args;

use super::arguments::SpeakerArguments;
use super::error::{CliError, Exit};
use super::handover;
use super::output::Output;

/// Talk with the model that a run has trained, and with its base
///
/// `/tuned` and `/base` choose who answers, `/system TEXT` sets the system message, `/reset` forgets the conversation,
/// `/help` lists all. Ctrl-C stops an answer, Ctrl-D leaves. Answers are no medical advice.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    pub speaker: SpeakerArguments,

    /// Begin with the base instead of the tuned model
    #[arg(long)]
    pub base: bool,

    /// Longest answer, in tokens
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = super::bench::positive)]
    pub max_new_tokens: usize,

    /// 0 takes the likeliest token each time
    #[arg(long, value_name = "T", default_value_t = 0.7)]
    pub temperature: f64,

    /// The same seed gives the same answers [default: another each time]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
}

/// Runs the conversation; only `flow-lm` can.
pub type ModelChat = fn(&Arguments, &Output) -> Result<Exit, CliError>;

pub fn run(
    arguments: &Arguments,
    model: Option<ModelChat>,
    output: &Output,
) -> Result<Exit, CliError> {
    match model {
        Some(model) => model(arguments, output),
        None => Err(handover::to_language_model()),
    }
}

#[cfg(feature = "torch")]
mod conversation;
#[cfg(feature = "torch")]
mod input;

#[cfg(feature = "torch")]
pub use conversation::with_model;
