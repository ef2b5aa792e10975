//! The model that a benchmark runs.

use std::path::Path;

use miette::Diagnostic as _;

use crate::cli::error::CliError;
use crate::lm::{
    Decoder, DeviceChoice, DtypeChoice, LanguageModel, LmError, LoadOptions, ModelConfig,
    Placement, RANDOM_MODELS, random_model,
};

/// Loads `name`: a path, or `random:` and the name of a shape.
pub fn load(name: &str) -> Result<(ModelConfig, Decoder), CliError> {
    let Some(shape) = name.strip_prefix("random:") else {
        let model = LanguageModel::load(Path::new(name), &LoadOptions::default())?;
        return Ok((model.config, model.decoder));
    };
    let placement = Placement::resolve(DeviceChoice::Auto, DtypeChoice::Auto)?;
    let Some(model) = random_model(shape, placement) else {
        let known = RANDOM_MODELS.map(|known| format!("`random:{known}`"));
        return Err(CliError::wrong(
            format!("there is no random model called `{shape}`"),
            format!("use {}, or the path of a model", known.join(", ")),
        ));
    };
    Ok(model?)
}

impl From<LmError> for CliError {
    fn from(error: LmError) -> Self {
        Self::failed(error.to_string(), error.help().map(|help| help.to_string()))
    }
}
