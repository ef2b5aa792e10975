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
        let files = ModelFiles::open(path)?;
        let (known, embedded) = (files.tokenizer.vocab_size(), files.config.vocab);
        if known > embedded {
            let reason = format!("it has {known} tokens, the embedding {embedded}");
            return Err(LmError::Tokenizer {
                path: path.to_owned(),
                reason,
            });
        }
        let token = |token: Option<&str>| token.map(str::to_owned);
        let template = files
            .template
            .map(|source| {
                let (bos, eos) = (
                    token(files.tokenizer.bos_token()),
                    token(files.tokenizer.eos_token()),
                );
                ChatTemplate::new(&source, bos, eos)
            })
            .transpose()?;
        Ok(Self {
            decoder: Decoder::load(&files.config, &files.weights, placement)?,
            config: files.config,
            tokenizer: files.tokenizer,
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

/// A model opened for reading: all but the weights is in memory.
pub(super) struct ModelFiles {
    pub(super) config: ModelConfig,
    pub(super) weights: Weights,
    pub(super) tokenizer: Tokenizer,
    /// The text of the chat template.
    pub(super) template: Option<String>,
}

impl ModelFiles {
    /// Opens a `.gguf` file or a model folder.
    pub(super) fn open(path: &Path) -> Result<Self, LmError> {
        if !path.is_dir() {
            let file = GgufFile::open(path)?;
            let config = ModelConfig::from_gguf(&file)?;
            return Ok(Self {
                tokenizer: Tokenizer::from_gguf(&file)?,
                template: file.text("tokenizer.chat_template").map(str::to_owned),
                weights: Weights::from_gguf(file, config.family, config.heads, config.kv_heads),
                config,
            });
        }
        let config_path = path.join("config.json");
        if !config_path.exists() {
            return Err(LmError::missing(path, "config.json"));
        }
        Ok(Self {
            config: ModelConfig::from_hf(&config_path)?,
            tokenizer: Tokenizer::from_folder(path)?,
            template: folder_template(path)?,
            weights: Weights::open(path)?,
        })
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
