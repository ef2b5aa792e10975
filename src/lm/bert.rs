//! A BERT encoder such as all-MiniLM-L6-v2 (reference: `modeling_bert` of transformers).

use std::path::Path;

use serde::Deserialize;
use tch::Tensor;

use super::attention::Bidirectional;
use super::tokenizer::optional_json;
use super::{Batch, LmError, Placement, Weights};

/// The weights of an encoder.
pub(super) struct Encoder {
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

impl Encoder {
    /// Loads a folder with `config.json` and `model.safetensors`.
    ///
    /// # Errors
    /// One [`LmError`] that names the file and the cause.
    pub(super) fn load(folder: &Path, placement: Placement) -> Result<Self, LmError> {
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

    pub(super) fn placement(&self) -> Placement {
        self.placement
    }

    /// The most tokens of a text.
    pub(super) fn positions(&self) -> i64 {
        self.positions.size()[0]
    }

    /// The last hidden states of packed texts, [T, hidden].
    ///
    /// # Errors
    /// [`LmError::Torch`], out of memory included.
    pub(super) fn forward(&self, batch: &Batch) -> Result<Tensor, LmError> {
        let lookup =
            |table: &Tensor, index: &Tensor| Tensor::f_embedding(table, index, -1, false, false);
        let embedded = (lookup(&self.words, &batch.ids)?
            + lookup(&self.positions, &batch.positions)?)
        .f_add_(&self.token_type)?;
        let mut x = self.norm.forward(&embedded)?;
        let heads = self.layers.first().map_or(1, |layer| layer.heads);
        let head_dim = x.size()[1] / heads;
        let attention = Bidirectional::new(&batch.cu_seqlens, head_dim, self.placement)?;
        for layer in &self.layers {
            x = layer.forward(&x, &attention)?;
        }
        Ok(x)
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
    fn forward(&self, x: &Tensor, attention: &Bidirectional) -> Result<Tensor, LmError> {
        let [tokens, hidden] = x.size()[..] else {
            unreachable!("x has two dimensions")
        };
        let qkv = self
            .qkv
            .forward(x)?
            .f_view([tokens, 3, self.heads, hidden / self.heads])?;
        let attended = attention.attend(
            &qkv.f_select(1, 0)?,
            &qkv.f_select(1, 1)?,
            &qkv.f_select(1, 2)?,
        )?;
        let x = self
            .output_norm
            .forward(&self.output.forward(&attended)?.f_add_(x)?)?;
        let inner = self.up.forward(&x)?.f_gelu_("none")?;
        self.down_norm
            .forward(&self.down.forward(&inner)?.f_add_(&x)?)
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

    fn forward(&self, x: &Tensor) -> Result<Tensor, LmError> {
        Ok(x.f_linear(&self.weight, Some(&self.bias))?)
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

    fn forward(&self, x: &Tensor) -> Result<Tensor, LmError> {
        Ok(x.f_layer_norm(
            self.weight.size(),
            Some(&self.weight),
            Some(&self.bias),
            self.eps,
            false,
        )?)
    }
}
