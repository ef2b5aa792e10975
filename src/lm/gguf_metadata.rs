//! The metadata of a GGUF: the shape of the model and its tokenizer, under the keys of llama.cpp.

use std::collections::BTreeMap;

use serde_json::Value;

use super::gguf_writer::{merges, text};
use super::merged::Merged;
use super::tokenizer::gguf_pre_tokenizer;
use super::{Family, RopeScaling};

pub(super) enum Metadata {
    U32(u32),
    F32(f32),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    I32s(Vec<i32>),
}

impl Metadata {
    pub(super) fn type_id(&self) -> u32 {
        match self {
            Self::U32(_) => 4,
            Self::F32(_) => 6,
            Self::Bool(_) => 7,
            Self::Text(_) => 8,
            Self::Texts(_) | Self::I32s(_) => 9,
        }
    }

    /// Appends the value without its type.
    pub(super) fn write(&self, bytes: &mut Vec<u8>) {
        let array = |bytes: &mut Vec<u8>, element: u32, count: usize| {
            bytes.extend(element.to_le_bytes());
            bytes.extend((count as u64).to_le_bytes());
        };
        match self {
            Self::U32(value) => bytes.extend(value.to_le_bytes()),
            Self::F32(value) => bytes.extend(value.to_le_bytes()),
            Self::Bool(value) => bytes.push(u8::from(*value)),
            Self::Text(value) => text(bytes, value),
            Self::Texts(values) => {
                array(bytes, 8, values.len());
                values.iter().for_each(|value| text(bytes, value));
            }
            Self::I32s(values) => {
                array(bytes, 5, values.len());
                bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            }
        }
    }
}

/// All pairs, the architecture first; `Err` says what a GGUF has no words for.
pub(super) fn metadata(
    model: &Merged,
    name: &str,
    file_type: u32,
) -> Result<Vec<(String, Metadata)>, String> {
    use Metadata::{Bool, F32, Text, U32};
    let config = model.config();
    let architecture = match config.family {
        Family::Llama => "llama",
        Family::Qwen3 => "qwen3",
    };
    let mut pairs = vec![
        (
            "general.architecture".to_owned(),
            Text(architecture.to_owned()),
        ),
        ("general.name".to_owned(), Text(name.to_owned())),
        ("general.file_type".to_owned(), U32(file_type)),
        ("general.quantization_version".to_owned(), U32(2)),
    ];
    let mut add = |key: &str, value: Metadata| pairs.push((format!("{architecture}.{key}"), value));
    for (key, value) in [
        ("block_count", config.layers),
        ("context_length", config.context),
        ("embedding_length", config.hidden),
        ("feed_forward_length", config.intermediate),
        ("attention.head_count", config.heads),
        ("attention.head_count_kv", config.kv_heads),
        ("attention.key_length", config.head_dim),
        ("attention.value_length", config.head_dim),
        ("rope.dimension_count", config.head_dim),
        ("vocab_size", config.vocab),
    ] {
        add(
            key,
            U32(u32::try_from(value).map_err(|_| format!("a `{key}` of {value}"))?),
        );
    }
    add(
        "attention.layer_norm_rms_epsilon",
        F32(config.norm_eps as f32),
    );
    add("rope.freq_base", F32(config.rope.theta as f32));
    match config.rope.scaling {
        RopeScaling::None => {}
        RopeScaling::Linear { factor } => {
            add("rope.scaling.type", Text("linear".to_owned()));
            add("rope.scaling.factor", F32(factor as f32));
        }
        RopeScaling::Llama3 { .. } => return Err("rope scaling `llama3` in a GGUF".to_owned()),
    }
    let tokenizer = model.tokenizer();
    let json = tokenizer.to_json().map_err(|error| error.to_string())?;
    add_tokenizer(&json, config.vocab, &mut pairs)?;
    let id = |token: Option<&str>| token.and_then(|token| tokenizer.token_id(token));
    let eos = id(tokenizer.eos_token());
    // What ends a turn, where it is another token than the one that ends a text.
    let other = tokenizer
        .stop_ids()
        .iter()
        .copied()
        .find(|stop| Some(*stop) != eos);
    for (key, id) in [
        ("bos_token_id", id(tokenizer.bos_token())),
        ("eos_token_id", eos),
        ("eot_token_id", other),
        ("padding_token_id", eos),
    ] {
        if let Some(id) = id.and_then(|id| u32::try_from(id).ok()) {
            pairs.push((format!("tokenizer.ggml.{key}"), U32(id)));
        }
    }
    pairs.push(("tokenizer.ggml.add_bos_token".to_owned(), Bool(false)));
    if let Some(template) = model.template() {
        pairs.push((
            "tokenizer.chat_template".to_owned(),
            Text(template.to_owned()),
        ));
    }
    Ok(pairs)
}

/// Types of tokens.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

/// Vocabulary and merges of a byte-level BPE `tokenizer.json`; places of the embedding without a token get one that is
/// never used.
fn add_tokenizer(
    json: &Value,
    vocab: i64,
    pairs: &mut Vec<(String, Metadata)>,
) -> Result<(), String> {
    let pre = gguf_pre_tokenizer(json).ok_or("a way to split text that a GGUF has no name for")?;
    let known = json["model"]["vocab"]
        .as_object()
        .ok_or("a tokenizer without a vocabulary")?;
    let mut tokens: BTreeMap<i64, (String, i32)> = known
        .iter()
        .filter_map(|(token, id)| Some((id.as_i64()?, (token.clone(), NORMAL))))
        .collect();
    for added in json["added_tokens"].as_array().into_iter().flatten() {
        if let (Some(id), Some(token)) = (added["id"].as_i64(), added["content"].as_str()) {
            let kind = match added["special"].as_bool() {
                Some(true) => CONTROL,
                _ => USER_DEFINED,
            };
            tokens.insert(id, (token.to_owned(), kind));
        }
    }
    let (tokens, types) = (0..vocab)
        .map(|id| {
            tokens
                .remove(&id)
                .unwrap_or_else(|| (format!("[PAD{id}]"), UNUSED))
        })
        .unzip();
    pairs.extend([
        (
            "tokenizer.ggml.model".to_owned(),
            Metadata::Text("gpt2".to_owned()),
        ),
        (
            "tokenizer.ggml.pre".to_owned(),
            Metadata::Text(pre.to_owned()),
        ),
        ("tokenizer.ggml.tokens".to_owned(), Metadata::Texts(tokens)),
        (
            "tokenizer.ggml.token_type".to_owned(),
            Metadata::I32s(types),
        ),
        (
            "tokenizer.ggml.merges".to_owned(),
            Metadata::Texts(merges(json)),
        ),
    ]);
    Ok(())
}
