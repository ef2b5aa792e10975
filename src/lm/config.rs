//! The shape of a decoder, read from a Hugging Face `config.json` or from GGUF metadata.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use super::LmError;
use super::gguf::GgufFile;

/// Decoder families. They differ in the per-head norm of queries and keys, which only qwen3 has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    Llama,
    Qwen3,
}

impl Family {
    /// From `model_type` of a config or `general.architecture` of a GGUF.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "llama" => Some(Self::Llama),
            "qwen3" => Some(Self::Qwen3),
            _ => None,
        }
    }

    /// Queries and keys are normed per head before rotation.
    pub fn has_head_norm(self) -> bool {
        self == Self::Qwen3
    }
}

/// Shapes and constants of a decoder. All counts are checked to be positive and to fit together.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    pub family: Family,
    pub layers: i64,
    pub hidden: i64,
    pub heads: i64,
    pub kv_heads: i64,
    pub head_dim: i64,
    pub intermediate: i64,
    pub vocab: i64,
    /// The most tokens a sequence may have.
    pub context: i64,
    pub norm_eps: f64,
    pub rope: Rope,
    /// The output head is the embedding.
    pub tied: bool,
}

/// Rotary position embedding (Su et al. 2021, arXiv:2104.09864).
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    pub theta: f64,
    pub scaling: RopeScaling,
}

#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    None,
    /// Position interpolation (arXiv:2306.15595): every frequency divided by `factor`.
    Linear {
        factor: f64,
    },
    /// Llama 3.1: long wavelengths divided by `factor`, short ones kept, a smooth ramp between.
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original_context: f64,
    },
}

#[derive(Deserialize)]
struct HfConfig {
    hidden_size: i64,
    intermediate_size: i64,
    num_hidden_layers: i64,
    num_attention_heads: i64,
    num_key_value_heads: Option<i64>,
    head_dim: Option<i64>,
    vocab_size: i64,
    max_position_embeddings: i64,
    rms_norm_eps: f64,
    hidden_act: Option<String>,
    rope_theta: Option<f64>,
    rope_scaling: Option<RopeJson>,
    rope_parameters: Option<RopeJson>,
    tie_word_embeddings: Option<bool>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    use_sliding_window: Option<bool>,
    quantization_config: Option<Value>,
}

/// `rope_scaling` (transformers 4, next to a top-level `rope_theta`) or `rope_parameters` (transformers 5).
#[derive(Deserialize)]
struct RopeJson {
    #[serde(alias = "type")]
    rope_type: Option<String>,
    rope_theta: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
}

impl ModelConfig {
    /// Reads a `config.json`.
    ///
    /// # Errors
    /// [`LmError::Corrupt`] for a file that is no such JSON or whose numbers contradict each other,
    /// [`LmError::Unsupported`] for architectures and options this runtime does not compute.
    pub fn from_hf(path: &Path) -> Result<Self, LmError> {
        let bytes = std::fs::read(path).map_err(|error| LmError::read(path, error))?;
        Self::from_hf_json(path, &bytes)
    }

    fn from_hf_json(path: &Path, bytes: &[u8]) -> Result<Self, LmError> {
        let corrupt = |reason: String| LmError::corrupt(path, "config.json", reason);
        let unsupported = |what: String| LmError::unsupported(path, what);
        let json: Value =
            serde_json::from_slice(bytes).map_err(|error| corrupt(error.to_string()))?;
        // The family is checked first: other architectures lack keys, and their absence would be the wrong message.
        let model_type = json
            .get("model_type")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let family = Family::from_name(model_type)
            .ok_or_else(|| unsupported(format!("architecture `{model_type}`")))?;
        let raw: HfConfig =
            serde_json::from_value(json.clone()).map_err(|error| corrupt(error.to_string()))?;

        for (flag, name) in [
            (raw.attention_bias, "`attention_bias`"),
            (raw.mlp_bias, "`mlp_bias`"),
            (raw.use_sliding_window, "sliding-window attention"),
        ] {
            if flag == Some(true) {
                return Err(unsupported(name.to_owned()));
            }
        }
        if let Some(activation) = raw.hidden_act.filter(|activation| activation != "silu") {
            return Err(unsupported(format!("activation `{activation}`")));
        }
        if let Some(method) = raw
            .quantization_config
            .as_ref()
            .map(|q| q["quant_method"].as_str().unwrap_or("unknown"))
            && method != "bitsandbytes"
        {
            return Err(unsupported(format!("quantization method `{method}`")));
        }

        let rope_json = raw.rope_parameters.or(raw.rope_scaling);
        let theta = rope_json
            .as_ref()
            .and_then(|rope| rope.rope_theta)
            .or(raw.rope_theta)
            .unwrap_or(10_000.0);
        let scaling = match rope_json {
            None => RopeScaling::None,
            Some(rope) => rope.scaling(path)?,
        };
        Self {
            family,
            layers: raw.num_hidden_layers,
            hidden: raw.hidden_size,
            heads: raw.num_attention_heads,
            kv_heads: raw.num_key_value_heads.unwrap_or(raw.num_attention_heads),
            head_dim: match raw.head_dim {
                Some(head_dim) => head_dim,
                None => raw
                    .hidden_size
                    .checked_div(raw.num_attention_heads)
                    .unwrap_or(0),
            },
            intermediate: raw.intermediate_size,
            vocab: raw.vocab_size,
            context: raw.max_position_embeddings,
            norm_eps: raw.rms_norm_eps,
            rope: Rope { theta, scaling },
            tied: raw.tie_word_embeddings.unwrap_or(false),
        }
        .checked()
        .map_err(corrupt)
    }

    /// Reads the metadata of a GGUF file.
    ///
    /// # Errors
    /// As [`ModelConfig::from_hf`].
    pub(super) fn from_gguf(file: &GgufFile) -> Result<Self, LmError> {
        let path = file.path();
        let corrupt = |reason: String| LmError::corrupt(path, "GGUF", reason);
        let architecture = file.text("general.architecture").unwrap_or_default();
        let family = Family::from_name(architecture)
            .ok_or_else(|| LmError::unsupported(path, format!("architecture `{architecture}`")))?;
        for (found, what) in [
            (
                file.integer("split.count").is_some_and(|count| count > 1),
                "a GGUF split over several files",
            ),
            (
                file.integer(&format!("{architecture}.expert_count"))
                    .is_some_and(|count| count > 0),
                "experts",
            ),
            (
                file.shape("blk.0.attn_q.bias").is_some(),
                "attention biases",
            ),
            (
                file.shape("rope_freqs.weight").is_some(),
                "rope scaling `llama3` from a GGUF",
            ),
        ] {
            if found {
                return Err(LmError::unsupported(path, what));
            }
        }
        let optional = |key: &str| file.integer(&format!("{architecture}.{key}"));
        let integer = |key: &str| {
            optional(key).ok_or_else(|| corrupt(format!("no integer `{architecture}.{key}`")))
        };
        let float = |key: &str| file.float(&format!("{architecture}.{key}"));

        let scaling = match file.text(&format!("{architecture}.rope.scaling.type")) {
            None | Some("none") => RopeScaling::None,
            Some("linear") => RopeScaling::Linear {
                factor: float("rope.scaling.factor")
                    .filter(|factor| factor.is_finite() && *factor > 0.0)
                    .ok_or_else(|| {
                        corrupt("rope scaling `linear` needs a positive factor".into())
                    })?,
            },
            Some(other) => {
                return Err(LmError::unsupported(
                    path,
                    format!("rope scaling `{other}`"),
                ));
            }
        };
        let heads = integer("attention.head_count")?;
        let hidden = integer("embedding_length")?;
        let head_dim = match optional("attention.key_length") {
            Some(length) => length,
            None => hidden.checked_div(heads).unwrap_or(0),
        };
        if optional("rope.dimension_count").is_some_and(|dimensions| dimensions != head_dim) {
            return Err(LmError::unsupported(
                path,
                "rotation of a part of each head",
            ));
        }
        let embedding = file.shape("token_embd.weight");
        let embedding =
            embedding.ok_or_else(|| LmError::missing(path, "tensor token_embd.weight"))?;
        Self {
            family,
            layers: integer("block_count")?,
            hidden,
            heads,
            kv_heads: optional("attention.head_count_kv").unwrap_or(heads),
            head_dim,
            intermediate: integer("feed_forward_length")?,
            vocab: embedding[0] as i64,
            context: integer("context_length")?,
            norm_eps: float("attention.layer_norm_rms_epsilon").ok_or_else(|| {
                corrupt(format!(
                    "no float `{architecture}.attention.layer_norm_rms_epsilon`"
                ))
            })?,
            rope: Rope {
                theta: float("rope.freq_base").unwrap_or(10_000.0),
                scaling,
            },
            tied: file.shape("output.weight").is_none(),
        }
        .checked()
        .map_err(corrupt)
    }

    /// The content of a `config.json` for weights in bf16, read by transformers 4 and 5.
    pub(super) fn to_hf(&self) -> Value {
        let (model_type, architecture) = match self.family {
            Family::Llama => ("llama", "LlamaForCausalLM"),
            Family::Qwen3 => ("qwen3", "Qwen3ForCausalLM"),
        };
        let theta = self.rope.theta;
        let (old, new) = match self.rope.scaling {
            RopeScaling::None => (
                Value::Null,
                json!({ "rope_type": "default", "rope_theta": theta }),
            ),
            RopeScaling::Linear { factor } => (
                json!({ "type": "linear", "rope_type": "linear", "factor": factor }),
                json!({ "rope_type": "linear", "rope_theta": theta, "factor": factor }),
            ),
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_context,
            } => {
                let scaling = json!({
                    "rope_type": "llama3",
                    "factor": factor,
                    "low_freq_factor": low_freq_factor,
                    "high_freq_factor": high_freq_factor,
                    "original_max_position_embeddings": original_context as i64,
                });
                let mut new = scaling.clone();
                new["rope_theta"] = json!(theta);
                (scaling, new)
            }
        };
        json!({
            "architectures": [architecture],
            "model_type": model_type,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab,
            "max_position_embeddings": self.context,
            "rms_norm_eps": self.norm_eps,
            "hidden_act": "silu",
            "attention_bias": false,
            "mlp_bias": false,
            "rope_theta": theta,
            "rope_scaling": old,
            "rope_parameters": new,
            "tie_word_embeddings": self.tied,
            "torch_dtype": "bfloat16",
        })
    }

    /// Rejects numbers that would allocate absurd tensors or divide by zero later.
    fn checked(self) -> Result<Self, String> {
        let counts = [
            ("layers", self.layers, 1 << 12),
            ("hidden size", self.hidden, 1 << 20),
            ("attention heads", self.heads, 1 << 12),
            ("key-value heads", self.kv_heads, 1 << 12),
            ("head size", self.head_dim, 1 << 12),
            ("intermediate size", self.intermediate, 1 << 22),
            ("vocabulary size", self.vocab, 1 << 24),
            ("context length", self.context, 1 << 32),
        ];
        for (name, count, limit) in counts {
            if !(1..=limit).contains(&count) {
                return Err(format!("{name} is {count}"));
            }
        }
        if self.heads % self.kv_heads != 0 {
            return Err(format!(
                "{} attention heads cannot share {} key-value heads",
                self.heads, self.kv_heads
            ));
        }
        if self.head_dim % 2 != 0 {
            return Err(format!("head size {} is odd", self.head_dim));
        }
        if !(self.rope.theta.is_finite() && self.rope.theta > 0.0) {
            return Err(format!("rope theta is {}", self.rope.theta));
        }
        if !(self.norm_eps.is_finite() && self.norm_eps >= 0.0) {
            return Err(format!("norm epsilon is {}", self.norm_eps));
        }
        Ok(self)
    }

    /// Rows of the query projection; differs from `hidden` where heads × head size does.
    pub fn q_dim(&self) -> i64 {
        self.heads * self.head_dim
    }

    pub fn kv_dim(&self) -> i64 {
        self.kv_heads * self.head_dim
    }
}

impl RopeJson {
    fn scaling(&self, path: &Path) -> Result<RopeScaling, LmError> {
        let kind = self.rope_type.as_deref().unwrap_or("default");
        let number = |value: Option<f64>, name: &str| {
            value
                .filter(|value| value.is_finite() && *value > 0.0)
                .ok_or_else(|| {
                    LmError::corrupt(
                        path,
                        "config.json",
                        format!("rope scaling `{kind}` needs a positive `{name}`"),
                    )
                })
        };
        match kind {
            "default" => Ok(RopeScaling::None),
            "linear" => Ok(RopeScaling::Linear {
                factor: number(self.factor, "factor")?,
            }),
            "llama3" => Ok(RopeScaling::Llama3 {
                factor: number(self.factor, "factor")?,
                low_freq_factor: number(self.low_freq_factor, "low_freq_factor")?,
                high_freq_factor: number(self.high_freq_factor, "high_freq_factor")?,
                original_context: number(
                    self.original_max_position_embeddings,
                    "original_max_position_embeddings",
                )?,
            }),
            other => Err(LmError::unsupported(
                path,
                format!("rope scaling `{other}`"),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base() -> Value {
        json!({
            "model_type": "llama", "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3,
            "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512,
            "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "hidden_act": "silu"
        })
    }

    fn parse(changes: Value) -> Result<ModelConfig, String> {
        let mut json = base();
        for (key, value) in changes.as_object().unwrap() {
            json[key] = value.clone();
        }
        ModelConfig::from_hf_json(
            Path::new("config.json"),
            &serde_json::to_vec(&json).unwrap(),
        )
        .map_err(|error| error.to_string())
    }

    #[test]
    fn old_and_new_keys_agree() {
        let old = parse(json!({ "rope_theta": 5e6, "rope_scaling": null })).unwrap();
        let new =
            parse(json!({ "rope_parameters": { "rope_theta": 5e6, "rope_type": "default" } }))
                .unwrap();
        assert_eq!(old, new);
        assert_eq!(old.rope.theta, 5e6);
        assert_eq!(old.head_dim, 16);
    }

    #[test]
    fn scaling_kinds() {
        let linear = parse(json!({ "rope_scaling": { "type": "linear", "factor": 2.0 } })).unwrap();
        assert_eq!(linear.rope.scaling, RopeScaling::Linear { factor: 2.0 });
        let yarn =
            parse(json!({ "rope_scaling": { "rope_type": "yarn", "factor": 4.0 } })).unwrap_err();
        insta::assert_snapshot!(yarn, @"`config.json` needs rope scaling `yarn`, which is not supported");
        let bare = parse(json!({ "rope_scaling": { "rope_type": "linear" } })).unwrap_err();
        insta::assert_snapshot!(bare, @"`config.json` is not a usable config.json file: rope scaling `linear` needs a positive `factor`");
    }

    #[test]
    fn refuses_what_it_does_not_compute() {
        let error = parse(json!({ "model_type": "gemma3" })).unwrap_err();
        insta::assert_snapshot!(error, @"`config.json` needs architecture `gemma3`, which is not supported");
        let error =
            parse(json!({ "quantization_config": { "quant_method": "gptq" } })).unwrap_err();
        insta::assert_snapshot!(error, @"`config.json` needs quantization method `gptq`, which is not supported");
        assert!(parse(json!({ "attention_bias": true })).is_err());
        assert!(parse(json!({ "hidden_act": "gelu" })).is_err());
    }

    #[test]
    fn refuses_contradictions() {
        for change in [
            json!({ "num_attention_heads": 0 }),
            json!({ "num_key_value_heads": 3 }),
            json!({ "hidden_size": -64 }),
            json!({ "head_dim": 15 }),
            json!({ "vocab_size": i64::MAX }),
            json!({ "rope_theta": 0.0 }),
        ] {
            let error = parse(change.clone()).unwrap_err();
            assert!(
                error.starts_with("`config.json` is not a usable config.json file: "),
                "{change} gave {error}"
            );
        }
    }
}
