//! Loads the model that a run has trained, for the commands that let it speak.

use super::arguments::SpeakerArguments;
use super::error::CliError;
use super::folders::Folders;
use super::output::Output;
use super::trained::Trained;
use crate::chat::{Engine, Limits};
use crate::lm::{LanguageModel, LoadOptions};
use crate::ui::seconds;

/// The engine with base and tuned model, and one line that says what it is.
pub fn start(
    wanted: &SpeakerArguments,
    limits: Limits,
    output: &Output,
) -> Result<(Engine, String), CliError> {
    let trained = Trained::find(
        &Folders::of_working_folder(),
        &wanted.trained.run,
        wanted.trained.node.as_deref(),
        wanted.trained.offline,
        output,
    )?;
    let base = trained.base(wanted.trained.offline)?;
    let options = LoadOptions {
        dtype: wanted.dtype.parse()?,
        ..LoadOptions::default()
    };
    let started = std::time::Instant::now();
    let model = LanguageModel::load(&base, &options)?;
    let placement = model.decoder.placement();
    output.tell(&format!(
        "loaded {} in {} on {:?}, computing in {:?}",
        trained.base_name,
        seconds(started.elapsed().as_secs_f64()),
        placement.device,
        placement.kind
    ));
    let title = format!(
        "{}, tuned by {} in the run {}",
        trained.base_name, trained.pipeline, trained.id
    );
    let engine = Engine::start(model, &trained.adapter, trained.system.clone(), limits)?;
    Ok((engine, title))
}
