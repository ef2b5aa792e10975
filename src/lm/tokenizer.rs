//! Text to token ids and back: byte-level BPE from a `tokenizer.json` or from the vocabulary inside a GGUF.

use std::collections::BTreeSet;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use serde_json::Value;
use tokenizers::decoders::byte_level::ByteLevel;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, NormalizerWrapper, SplitDelimiterBehavior};

use super::LmError;
use super::gguf::GgufFile;

pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    path: PathBuf,
    bos_token: Option<String>,
    eos_token: Option<String>,
    stop_ids: Vec<i64>,
}

impl Tokenizer {
    /// Reads `tokenizer.json` of a model folder, and beside it `tokenizer_config.json`, `generation_config.json` and
    /// `config.json` for the tokens that begin and end texts.
    ///
    /// # Errors
    /// [`LmError::Missing`] without a `tokenizer.json`; [`LmError::Tokenizer`] or [`LmError::Corrupt`] for unreadable ones.
    pub fn from_folder(folder: &Path) -> Result<Self, LmError> {
        let path = folder.join("tokenizer.json");
        if !path.exists() {
            return Err(LmError::missing(folder, "tokenizer.json"));
        }
        let bytes = std::fs::read(&path).map_err(|error| LmError::read(&path, error))?;
        let mut inner = read(&bytes).map_err(|reason| LmError::Tokenizer {
            path: path.clone(),
            reason,
        })?;
        // Files keep the settings of their last use; lengths are the caller's business.
        inner.with_padding(None);
        inner
            .with_truncation(None)
            .map_err(|error| LmError::Tokenizer {
                path: path.clone(),
                reason: error.to_string(),
            })?;

        let tokenizer_config = optional_json(&folder.join("tokenizer_config.json"))?;
        let token = |key: &str| match &tokenizer_config[key] {
            Value::String(text) => Some(text.clone()),
            // Written by older versions: the token with its matching rules.
            Value::Object(token) => token.get("content")?.as_str().map(str::to_owned),
            _ => None,
        };
        let (bos_token, eos_token) = (token("bos_token"), token("eos_token"));
        let mut stop_ids = BTreeSet::new();
        stop_ids.extend(
            eos_token
                .as_deref()
                .and_then(|eos| inner.token_to_id(eos))
                .map(i64::from),
        );
        for name in ["generation_config.json", "config.json"] {
            match &optional_json(&folder.join(name))?["eos_token_id"] {
                Value::Array(ids) => stop_ids.extend(ids.iter().filter_map(Value::as_i64)),
                id => stop_ids.extend(id.as_i64()),
            }
        }
        let stop_ids = stop_ids.into_iter().collect();
        Ok(Self {
            inner,
            path,
            bos_token,
            eos_token,
            stop_ids,
        })
    }

    /// Builds the tokenizer that a GGUF describes.
    ///
    /// # Errors
    /// [`LmError::Unsupported`] for other kinds than byte-level BPE, [`LmError::Corrupt`] for contradictory vocabularies.
    pub(super) fn from_gguf(file: &GgufFile) -> Result<Self, LmError> {
        let path = file.path();
        let corrupt = |reason: String| LmError::corrupt(path, "GGUF", reason);
        let model = file.text("tokenizer.ggml.model").unwrap_or_default();
        if model != "gpt2" {
            return Err(LmError::unsupported(
                path,
                format!("tokenizer model `{model}`"),
            ));
        }
        let tokens = file
            .texts("tokenizer.ggml.tokens")
            .ok_or_else(|| corrupt("no `tokenizer.ggml.tokens`".into()))?;
        let merges = file
            .texts("tokenizer.ggml.merges")
            .ok_or_else(|| corrupt("no `tokenizer.ggml.merges`".into()))?;
        let merges = merges
            .into_iter()
            .map(|merge| {
                let (left, right) = merge
                    .split_once(' ')
                    .ok_or_else(|| corrupt(format!("merge `{merge}`")))?;
                Ok((left.to_owned(), right.to_owned()))
            })
            .collect::<Result<Vec<_>, LmError>>()?;
        let vocab: Vocab = (0..)
            .zip(&tokens)
            .map(|(id, token)| ((*token).to_owned(), id))
            .collect();
        if vocab.len() != tokens.len() {
            return Err(corrupt("the vocabulary lists a token twice".into()));
        }

        let pre = PreTokenizer::from_name(file.text("tokenizer.ggml.pre").unwrap_or("default"))
            .map_err(|name| LmError::unsupported(path, format!("pre-tokenizer `{name}`")))?;
        let refused = |error: tokenizers::Error| corrupt(error.to_string());
        let bpe = BPE::builder()
            .vocab_and_merges(vocab, merges)
            .ignore_merges(pre == PreTokenizer::Llama3)
            .build()
            .map_err(refused)?;
        let mut inner = tokenizers::Tokenizer::new(bpe);
        inner.with_pre_tokenizer(Some(pre.build().map_err(refused)?));
        inner.with_decoder(Some(ByteLevel::default()));
        if pre == PreTokenizer::Qwen2 {
            inner
                .with_normalizer(Some(NormalizerWrapper::NFC(NFC)))
                .map_err(refused)?;
        }

        const CONTROL: i64 = 3;
        const USER_DEFINED: i64 = 4;
        let types = file
            .integers("tokenizer.ggml.token_type")
            .unwrap_or_default();
        let added = tokens
            .iter()
            .zip(&types)
            .filter_map(|(token, &kind)| match kind {
                CONTROL => Some(AddedToken::from(*token, true).normalized(false)),
                USER_DEFINED => Some(AddedToken::from(*token, false).normalized(false)),
                _ => None,
            });
        inner.add_tokens(added).map_err(refused)?;

        let token_at = |key: &str| {
            let id = file.integer(&format!("tokenizer.ggml.{key}"))?;
            let token = tokens.get(usize::try_from(id).ok()?)?;
            Some((id, (*token).to_owned()))
        };
        let eos = token_at("eos_token_id");
        let stop_ids: BTreeSet<i64> = [&eos, &token_at("eot_token_id")]
            .into_iter()
            .flatten()
            .map(|(id, _)| *id)
            .collect();
        Ok(Self {
            inner,
            path: path.to_owned(),
            bos_token: token_at("bos_token_id").map(|(_, token)| token),
            eos_token: eos.map(|(_, token)| token),
            stop_ids: stop_ids.into_iter().collect(),
        })
    }

    /// Token ids of `text`. Special tokens written in the text are recognised; none are added, because a rendered chat
    /// template has them already.
    pub fn encode(&self, text: &str) -> Result<Vec<i64>, LmError> {
        let encoding = self
            .inner
            .encode_fast(text, false)
            .map_err(|error| self.error(error))?;
        Ok(encoding.get_ids().iter().map(|&id| i64::from(id)).collect())
    }

    /// Like [`Tokenizer::encode`], each token with the bytes of `text` that it stands for.
    pub fn encode_with_offsets(&self, text: &str) -> Result<Vec<(i64, Range<usize>)>, LmError> {
        let encoding = self
            .inner
            .encode(text, false)
            .map_err(|error| self.error(error))?;
        let ids = encoding.get_ids().iter().map(|&id| i64::from(id));
        let spans = encoding
            .get_offsets()
            .iter()
            .map(|&(start, end)| start..end);
        Ok(ids.zip(spans).collect())
    }

    /// The text of `ids` without special tokens. Bytes that form no character become U+FFFD.
    pub fn decode(&self, ids: &[i64]) -> Result<String, LmError> {
        self.decode_ids(ids, true)
    }

    /// Like [`Tokenizer::decode`], with special tokens written out.
    pub fn decode_with_specials(&self, ids: &[i64]) -> Result<String, LmError> {
        self.decode_ids(ids, false)
    }

    fn decode_ids(&self, ids: &[i64], skip_specials: bool) -> Result<String, LmError> {
        let ids = ids
            .iter()
            .map(|&id| u32::try_from(id))
            .collect::<Result<Vec<_>, _>>();
        let ids = ids.map_err(|error| self.error(error.into()))?;
        self.inner
            .decode(&ids, skip_specials)
            .map_err(|error| self.error(error))
    }

    pub fn token_id(&self, token: &str) -> Option<i64> {
        self.inner.token_to_id(token).map(i64::from)
    }

    /// The greatest id plus one.
    pub fn vocab_size(&self) -> i64 {
        self.inner
            .get_vocab(true)
            .into_values()
            .max()
            .map_or(0, |id| i64::from(id) + 1)
    }

    pub fn bos_token(&self) -> Option<&str> {
        self.bos_token.as_deref()
    }

    pub fn eos_token(&self) -> Option<&str> {
        self.eos_token.as_deref()
    }

    /// Tokens that end a generation, ascending.
    pub fn stop_ids(&self) -> &[i64] {
        &self.stop_ids
    }

    /// The content of a `tokenizer.json`.
    pub(super) fn to_json(&self) -> Result<Value, LmError> {
        serde_json::to_value(&self.inner).map_err(|error| self.error(error.into()))
    }

    fn error(&self, error: tokenizers::Error) -> LmError {
        LmError::Tokenizer {
            path: self.path.clone(),
            reason: error.to_string(),
        }
    }
}

/// How a GGUF says that text is split before BPE.
#[derive(Clone, Copy, PartialEq, Eq)]
enum PreTokenizer {
    Gpt2,
    SmolLm,
    Qwen2,
    Llama3,
}

impl PreTokenizer {
    fn from_name(name: &str) -> Result<Self, &str> {
        match name {
            "gpt-2" | "default" => Ok(Self::Gpt2),
            "smollm" => Ok(Self::SmolLm),
            "qwen2" => Ok(Self::Qwen2),
            "llama-bpe" => Ok(Self::Llama3),
            other => Err(other),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Gpt2 => "gpt-2",
            Self::SmolLm => "smollm",
            Self::Qwen2 => "qwen2",
            Self::Llama3 => "llama-bpe",
        }
    }

    fn build(self) -> tokenizers::Result<PreTokenizerWrapper> {
        let gpt2 = ByteLevel::new(false, true, true);
        let bytes = ByteLevel::new(false, true, false);
        let first: PreTokenizerWrapper = match self {
            Self::Gpt2 => return Ok(gpt2.into()),
            Self::SmolLm => {
                return Ok(Sequence::new(vec![Digits::new(true).into(), gpt2.into()]).into());
            }
            Self::Qwen2 => words("1")?.into(),
            Self::Llama3 => words("1,3")?.into(),
        };
        Ok(Sequence::new(vec![first, bytes.into()]).into())
    }
}

/// The name that a GGUF has for the pre-tokenizer of a `tokenizer.json`, where it has one: what splits text in the same way.
pub(super) fn gguf_pre_tokenizer(tokenizer: &Value) -> Option<&'static str> {
    let steps = match &tokenizer["pre_tokenizer"]["pretokenizers"] {
        Value::Array(steps) => steps.as_slice(),
        _ => std::slice::from_ref(&tokenizer["pre_tokenizer"]),
    };
    // What offsets a token gets does not change how text is split; `{1}` says nothing.
    let essence = |step: &Value| {
        let keys = [
            "type",
            "behavior",
            "invert",
            "individual_digits",
            "add_prefix_space",
        ];
        let pattern = step["pattern"]["Regex"]
            .as_str()
            .map(|pattern| pattern.replace("{1}", ""));
        let regex = step["type"] == "ByteLevel" && step["use_regex"].as_bool().unwrap_or(true);
        (keys.map(|key| step[key].clone()), pattern, regex)
    };
    let known = [
        PreTokenizer::Gpt2,
        PreTokenizer::SmolLm,
        PreTokenizer::Qwen2,
        PreTokenizer::Llama3,
    ];
    let fitting = known.into_iter().find(|known| {
        let Some(built) = known
            .build()
            .ok()
            .and_then(|built| serde_json::to_value(built).ok())
        else {
            return false;
        };
        let built = match &built["pretokenizers"] {
            Value::Array(steps) => steps.clone(),
            _ => vec![built],
        };
        built.iter().map(essence).eq(steps.iter().map(essence))
    });
    fitting.map(PreTokenizer::name)
}

/// The word pattern that Qwen and Llama 3 share but for how many digits stay together.
fn words(digits: &str) -> tokenizers::Result<Split> {
    let pattern = format!(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{{digits}}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    );
    Split::new(
        SplitPattern::Regex(pattern),
        SplitDelimiterBehavior::Isolated,
        false,
    )
}

/// A JSON file that may be absent, which reads as null.
pub(super) fn optional_json(path: &Path) -> Result<Value, LmError> {
    if !path.exists() {
        return Ok(Value::Null);
    }
    let bytes = std::fs::read(path).map_err(|error| LmError::read(path, error))?;
    serde_json::from_slice(&bytes).map_err(|error| LmError::corrupt(path, "JSON", error))
}

/// A tokenizer from the text of a `tokenizer.json`, or what is wrong with it.
fn read(bytes: &[u8]) -> Result<tokenizers::Tokenizer, String> {
    // The library panics at some of what is no JSON or names unknown parts; it keeps nothing from one call to the next.
    serde_json::from_slice::<Value>(bytes).map_err(|error| error.to_string())?;
    let made = catch_unwind(AssertUnwindSafe(|| {
        tokenizers::Tokenizer::from_bytes(bytes).map_err(|error| error.to_string())
    }));
    made.unwrap_or_else(|_| Err("it has parts that no tokenizer has".to_owned()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pre_tokenizers_are_known_by_what_they_do() {
        let bytes = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true });
        let mut rest = bytes.clone();
        rest["use_regex"] = json!(false);
        let sequence = |steps: Value| {
            gguf_pre_tokenizer(
                &json!({ "pre_tokenizer": { "type": "Sequence", "pretokenizers": steps } }),
            )
        };
        let digits =
            |individual: bool| json!({ "type": "Digits", "individual_digits": individual });
        // As the checkpoints of Qwen3 write it.
        let qwen = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
        let split = json!({ "type": "Split", "pattern": { "Regex": qwen }, "behavior": "Isolated", "invert": false });
        assert_eq!(
            gguf_pre_tokenizer(&json!({ "pre_tokenizer": bytes })),
            Some("gpt-2")
        );
        assert_eq!(sequence(json!([digits(true), bytes])), Some("smollm"));
        assert_eq!(sequence(json!([split, rest])), Some("qwen2"));
        assert_eq!(sequence(json!([digits(false), bytes])), None);
        assert_eq!(
            gguf_pre_tokenizer(&json!({ "pre_tokenizer": { "type": "Whitespace" } })),
            None
        );
    }

    #[test]
    fn survives_damage() {
        let seed = json!({
            "version": "1.0",
            "added_tokens": [{ "id": 0, "content": "<s>", "special": true, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false }],
            "normalizer": { "type": "NFC" },
            "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true },
            "post_processor": { "type": "TemplateProcessing", "single": [{ "SpecialToken": { "id": "<s>", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }], "pair": [], "special_tokens": { "<s>": { "id": "<s>", "ids": [0], "tokens": ["<s>"] } } },
            "decoder": { "type": "ByteLevel" },
            "model": { "type": "BPE", "vocab": { "<s>": 0, "a": 1, "b": 2, "ab": 3 }, "merges": [["a", "b"]] },
        });
        crate::fuzz::survives(&[seed.to_string().into()], |bytes| {
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join("tokenizer.json"), bytes).unwrap();
            if let Ok(tokenizer) = Tokenizer::from_folder(folder.path()) {
                let ids = tokenizer.encode("ab ba <s>").unwrap_or_default();
                let _ = tokenizer.decode(&ids);
                let _ = tokenizer.to_json();
            }
        });
    }
}
