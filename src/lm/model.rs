//! A language model as callers hold it: decoder, tokenizer and chat template from one path.

use std::path::Path;

use serde_json::Value;

use super::chat::{ChatTemplate, Message};
use super::gguf::GgufFile;
use super::tokenizer::{Tokenizer, optional_json};
use super::{Decoder, DeviceChoice, DtypeChoice, LmError, ModelConfig, Placement, Weights};

/// Where and how to load a model.
#[derive(Clone, Copy, Debug, Default)]
pub struct LoadOptions {
    pub device: DeviceChoice,
    pub dtype: DtypeChoice,
}

pub struct LanguageModel {
    pub config: ModelConfig,
    pub decoder: Decoder,
    pub tokenizer: Tokenizer,
    /// None for base models.
    pub template: Option<ChatTemplate>,
}

impl LanguageModel {
    /// Loads a `.gguf` file, or a folder with `config.json`, safetensors and `tokenizer.json`.
    ///
    /// # Errors
    /// One [`LmError`] that names the file and the cause.
    pub fn load(path: &Path, options: &LoadOptions) -> Result<Self, LmError> {
        let placement = Placement::resolve(options.device, options.dtype)?;
        if path.is_dir() {
            Self::from_folder(path, placement)
        } else {
            Self::from_gguf(path, placement)
        }
    }

    fn from_folder(folder: &Path, placement: Placement) -> Result<Self, LmError> {
        let config_path = folder.join("config.json");
        if !config_path.exists() {
            return Err(LmError::missing(folder, "config.json"));
        }
        let config = ModelConfig::from_hf(&config_path)?;
        let tokenizer = Tokenizer::from_folder(folder)?;
        let template = folder_template(folder)?;
        Self::assemble(
            config,
            &Weights::open(folder)?,
            tokenizer,
            template.as_deref(),
            placement,
        )
    }

    fn from_gguf(path: &Path, placement: Placement) -> Result<Self, LmError> {
        let file = GgufFile::open(path)?;
        let config = ModelConfig::from_gguf(&file)?;
        let tokenizer = Tokenizer::from_gguf(&file)?;
        let template = file.text("tokenizer.chat_template").map(str::to_owned);
        let weights = Weights::from_gguf(file, config.family, config.heads, config.kv_heads);
        Self::assemble(config, &weights, tokenizer, template.as_deref(), placement)
    }

    fn assemble(
        config: ModelConfig,
        weights: &Weights,
        tokenizer: Tokenizer,
        template: Option<&str>,
        placement: Placement,
    ) -> Result<Self, LmError> {
        let (known, embedded) = (tokenizer.vocab_size(), config.vocab);
        if known > embedded {
            let reason = format!("it has {known} tokens, the embedding {embedded}");
            return Err(LmError::Tokenizer {
                path: weights.path().to_owned(),
                reason,
            });
        }
        let token = |token: Option<&str>| token.map(str::to_owned);
        let template = template
            .map(|source| {
                let (bos, eos) = (token(tokenizer.bos_token()), token(tokenizer.eos_token()));
                ChatTemplate::new(source, bos, eos)
            })
            .transpose()?;
        let decoder = Decoder::load(&config, weights, placement)?;
        Ok(Self {
            config,
            decoder,
            tokenizer,
            template,
        })
    }

    /// The prompt for `messages`; see [`ChatTemplate::render`].
    ///
    /// # Errors
    /// [`LmError::Template`], also where the model has no template.
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String, LmError> {
        ChatTemplate::of_model(self.template.as_ref())?.render(messages, add_generation_prompt)
    }

    /// Tokens that end a generation.
    pub fn stop_ids(&self) -> &[i64] {
        self.tokenizer.stop_ids()
    }

    /// The token that ends a turn of the assistant.
    pub fn end_of_turn(&self) -> Option<i64> {
        let eos = self
            .tokenizer
            .eos_token()
            .and_then(|eos| self.tokenizer.token_id(eos));
        eos.or_else(|| self.stop_ids().first().copied())
    }
}

/// The template of a folder: `chat_template.jinja`, else the (default) one in `tokenizer_config.json`.
fn folder_template(folder: &Path) -> Result<Option<String>, LmError> {
    let path = folder.join("chat_template.jinja");
    if path.exists() {
        return std::fs::read_to_string(&path)
            .map(Some)
            .map_err(|error| LmError::read(&path, error));
    }
    let config = optional_json(&folder.join("tokenizer_config.json"))?;
    Ok(match &config["chat_template"] {
        Value::String(source) => Some(source.clone()),
        Value::Array(named) => named
            .iter()
            .find(|template| template["name"] == "default")
            .and_then(|template| template["template"].as_str())
            .map(str::to_owned),
        _ => None,
    })
}
