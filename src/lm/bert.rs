//! Sentence embeddings from a BERT encoder such as all-MiniLM-L6-v2 (references: `modeling_bert` of transformers,
//! Reimers & Gurevych 2019, arXiv:1908.10084): mean pooling over tokens, then L2 normalisation.

use std::path::Path;

use serde::Deserialize;
use tch::{Kind, Tensor};
use tokenizers::TruncationParams;

use super::tokenizer::optional_json;
use super::{LmError, LoadOptions, Placement, Weights, attention, guard};

/// A sentence encoder with its tokenizer.
pub struct Embedder {
    tokenizer: tokenizers::Tokenizer,
    words: Tensor,
    positions: Tensor,
    /// The embedding of token type 0, the only one in use.
    token_type: Tensor,
    norm: LayerNorm,
    layers: Vec<EncoderLayer>,
    placement: Placement,
}

#[derive(Deserialize)]
struct BertConfig {
    model_type: String,
    hidden_size: i64,
    intermediate_size: i64,
    num_hidden_layers: i64,
    num_attention_heads: i64,
    vocab_size: i64,
    max_position_embeddings: i64,
    type_vocab_size: i64,
    layer_norm_eps: f64,
    hidden_act: String,
}

struct EncoderLayer {
    /// Queries, keys and values in one.
    qkv: Affine,
    output: Affine,
    output_norm: LayerNorm,
    up: Affine,
    down: Affine,
    down_norm: LayerNorm,
    heads: i64,
}

impl Embedder {
    /// Loads a folder with `config.json`, `model.safetensors` and `tokenizer.json`.
    ///
    /// # Errors
    /// One [`LmError`] that names the file and the cause.
    pub fn load(folder: &Path, options: &LoadOptions) -> Result<Self, LmError> {
        let placement = Placement::resolve(options.device, options.dtype)?;
        let config = BertConfig::load(folder)?;
        let weights = Weights::open(folder)?;
        let hidden = config.hidden_size;
        let table = |name: &str, rows: i64| {
            weights.tensor(
                &format!("embeddings.{name}.weight"),
                &[rows, hidden],
                placement,
            )
        };
        let eps = config.layer_norm_eps;
        Ok(Self {
            tokenizer: load_tokenizer(folder, config.max_position_embeddings)?,
            words: table("word_embeddings", config.vocab_size)?,
            positions: table("position_embeddings", config.max_position_embeddings)?,
            token_type: table("token_type_embeddings", config.type_vocab_size)?.f_get(0)?,
            norm: LayerNorm::load(&weights, "embeddings.LayerNorm", hidden, eps, placement)?,
            layers: (0..config.num_hidden_layers)
                .map(|index| EncoderLayer::load(&config, &weights, index, placement))
                .collect::<Result<_, _>>()?,
            placement,
        })
    }

    /// The unit vector of each text, in order. Texts longer than the encoder reads are cut at its limit.
    ///
    /// # Errors
    /// [`LmError::Tokenizer`], or [`LmError::Torch`].
    pub fn embed<S: AsRef<str>>(&self, texts: &[S]) -> Result<Vec<Vec<f32>>, LmError> {
        const TOKENS_AT_ONCE: usize = 4096;
        let mut vectors = Vec::with_capacity(texts.len());
        let mut pending: Vec<Vec<i64>> = Vec::new();
        let mut tokens = 0;
        for text in texts {
            let ids = self.encode(text.as_ref())?;
            if !pending.is_empty() && tokens + ids.len() > TOKENS_AT_ONCE {
                vectors.append(&mut self.embed_batch(&pending)?);
                pending.clear();
                tokens = 0;
            }
            tokens += ids.len();
            pending.push(ids);
        }
        if !pending.is_empty() {
            vectors.append(&mut self.embed_batch(&pending)?);
        }
        Ok(vectors)
    }

    fn encode(&self, text: &str) -> Result<Vec<i64>, LmError> {
        let encoding = self.tokenizer.encode_fast(text, true).map_err(|error| {
            LmError::Prompt(format!("the encoder's tokenizer refuses it: {error}"))
        })?;
        Ok(encoding.get_ids().iter().map(|&id| i64::from(id)).collect())
    }

    fn embed_batch(&self, sequences: &[Vec<i64>]) -> Result<Vec<Vec<f32>>, LmError> {
        guard(|| {
            let vectors = tch::no_grad(|| self.forward(sequences));
            Ok(Vec::try_from(vectors.to_device(tch::Device::Cpu))?)
        })
    }

    /// f32 [B, hidden], each row of length 1.
    fn forward(&self, sequences: &[Vec<i64>]) -> Tensor {
        let device = self.placement.device;
        let batch = super::Batch::pack(sequences, device);
        let embedded = Tensor::embedding(&self.words, &batch.ids, -1, false, false)
            + Tensor::embedding(&self.positions, &batch.positions, -1, false, false)
            + &self.token_type;
        let mut x = self.norm.forward(&embedded);
        for layer in &self.layers {
            x = layer.forward(&x, &batch.cu_seqlens);
        }
        let lengths: Vec<i64> = batch.cu_seqlens.windows(2).map(|b| b[1] - b[0]).collect();
        let lengths = Tensor::from_slice(&lengths).to_device(device);
        let rows = Tensor::arange(sequences.len() as i64, (Kind::Int64, device));
        let row_of = rows.repeat_interleave_self_tensor(&lengths, 0, x.size()[0]);
        let sums = Tensor::zeros([sequences.len() as i64, x.size()[1]], (Kind::Float, device))
            .index_add_(0, &row_of, &x.to_kind(Kind::Float));
        // The length scales out in the norm, so sums do for means.
        let norm = sums.square().sum_dim_intlist(1, true, Kind::Float).sqrt();
        sums / norm.clamp_min(1e-12)
    }
}

impl BertConfig {
    fn load(folder: &Path) -> Result<Self, LmError> {
        let path = folder.join("config.json");
        if !path.exists() {
            return Err(LmError::missing(folder, "config.json"));
        }
        let json = optional_json(&path)?;
        let config = Self::deserialize(&json)
            .map_err(|error| LmError::corrupt(&path, "config.json", error))?;
        let sizes = [
            config.hidden_size,
            config.intermediate_size,
            config.num_hidden_layers,
            config.num_attention_heads,
            config.vocab_size,
            config.max_position_embeddings,
            config.type_vocab_size,
        ];
        if sizes.iter().any(|size| !(1..1 << 24).contains(size))
            || config.hidden_size % config.num_attention_heads != 0
        {
            return Err(LmError::corrupt(
                &path,
                "config.json",
                format!("sizes {sizes:?}"),
            ));
        }
        for (found, expected) in [(&config.model_type, "bert"), (&config.hidden_act, "gelu")] {
            if found != expected {
                let what = format!("`{found}` where an encoder has `{expected}`");
                return Err(LmError::unsupported(&path, what));
            }
        }
        Ok(config)
    }
}

/// The tokenizer, set to cut texts at the length the encoder was trained for.
fn load_tokenizer(folder: &Path, positions: i64) -> Result<tokenizers::Tokenizer, LmError> {
    let path = folder.join("tokenizer.json");
    if !path.exists() {
        return Err(LmError::missing(folder, "tokenizer.json"));
    }
    let refused = |error: tokenizers::Error| LmError::Tokenizer {
        path: path.clone(),
        reason: error.to_string(),
    };
    let bytes = std::fs::read(&path).map_err(|error| LmError::read(&path, error))?;
    let mut tokenizer = tokenizers::Tokenizer::from_bytes(bytes).map_err(refused)?;
    let trained = &optional_json(&folder.join("sentence_bert_config.json"))?["max_seq_length"];
    let max_length = trained
        .as_i64()
        .map_or(positions, |length| length.clamp(2, positions));
    let truncation = TruncationParams {
        max_length: max_length as usize,
        ..TruncationParams::default()
    };
    tokenizer.with_padding(None);
    tokenizer
        .with_truncation(Some(truncation))
        .map_err(refused)?;
    Ok(tokenizer)
}

impl EncoderLayer {
    fn load(
        config: &BertConfig,
        weights: &Weights,
        index: i64,
        placement: Placement,
    ) -> Result<Self, LmError> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let affine = |name: &str, out: i64, input: i64| {
            Affine::load(
                weights,
                &format!("encoder.layer.{index}.{name}"),
                [out, input],
                placement,
            )
        };
        let norm = |name: &str| {
            let prefix = format!("encoder.layer.{index}.{name}.LayerNorm");
            LayerNorm::load(weights, &prefix, hidden, config.layer_norm_eps, placement)
        };
        let attention = ["query", "key", "value"]
            .map(|name| affine(&format!("attention.self.{name}"), hidden, hidden));
        let [q, k, v] = attention;
        Ok(Self {
            qkv: Affine::stack(&[q?, k?, v?]),
            output: affine("attention.output.dense", hidden, hidden)?,
            output_norm: norm("attention.output")?,
            up: affine("intermediate.dense", inner, hidden)?,
            down: affine("output.dense", hidden, inner)?,
            down_norm: norm("output")?,
            heads: config.num_attention_heads,
        })
    }

    /// [T, hidden] → [T, hidden].
    fn forward(&self, x: &Tensor, cu_seqlens: &[i64]) -> Tensor {
        let [tokens, hidden] = x.size()[..] else {
            unreachable!("x has two dimensions")
        };
        let qkv = self
            .qkv
            .forward(x)
            .view([tokens, 3, self.heads, hidden / self.heads]);
        let attended = attention::full_varlen(
            &qkv.select(1, 0),
            &qkv.select(1, 1),
            &qkv.select(1, 2),
            cu_seqlens,
        );
        let x = self
            .output_norm
            .forward(&(x + self.output.forward(&attended)));
        let inner = self.up.forward(&x).gelu("none");
        self.down_norm.forward(&(&x + self.down.forward(&inner)))
    }
}

/// `y = x · weightᵀ + bias`.
struct Affine {
    weight: Tensor,
    bias: Tensor,
}

impl Affine {
    fn load(
        weights: &Weights,
        prefix: &str,
        shape: [i64; 2],
        placement: Placement,
    ) -> Result<Self, LmError> {
        Ok(Self {
            weight: weights.tensor(&format!("{prefix}.weight"), &shape, placement)?,
            bias: weights.tensor(&format!("{prefix}.bias"), &shape[..1], placement)?,
        })
    }

    fn stack(parts: &[Self]) -> Self {
        let weights: Vec<&Tensor> = parts.iter().map(|part| &part.weight).collect();
        let biases: Vec<&Tensor> = parts.iter().map(|part| &part.bias).collect();
        Self {
            weight: Tensor::cat(&weights, 0),
            bias: Tensor::cat(&biases, 0),
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        x.linear(&self.weight, Some(&self.bias))
    }
}

struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    fn load(
        weights: &Weights,
        prefix: &str,
        size: i64,
        eps: f64,
        placement: Placement,
    ) -> Result<Self, LmError> {
        let load = |name: &str| weights.tensor(&format!("{prefix}.{name}"), &[size], placement);
        Ok(Self {
            weight: load("weight")?,
            bias: load("bias")?,
            eps,
        })
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        x.layer_norm(
            self.weight.size(),
            Some(&self.weight),
            Some(&self.bias),
            self.eps,
            false,
        )
    }
}
