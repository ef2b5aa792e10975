//! The `models:` section: where a language model comes from.

use serde::{Deserialize, Serialize};

/// Whether a URL names a user or a password (RFC 3986, 3.2.1), which would end up in records of runs.
pub fn has_credentials(url: &str) -> bool {
    let authority = url.split_once("://").map(|(_, rest)| rest);
    authority
        .and_then(|rest| rest.split(['/', '?', '#']).next())
        .is_some_and(|authority| authority.contains('@'))
}

/// One entry under `models:`; exactly one of `path`, `hf` and `url` is given.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelSpec {
    /// A GGUF file, or a folder with `config.json`, safetensors and `tokenizer.json`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// A repository of the Hugging Face hub, such as `Qwen/Qwen3-4B-Instruct-2507`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hf: Option<String>,
    /// Branch, tag or commit of `hf`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// The base URL of an OpenAI-compatible endpoint, such as `http://127.0.0.1:8000/v1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// The model's name at `url`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The environment variable that holds the endpoint's API key; the key itself is never written down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key_env: Option<String>,
}
