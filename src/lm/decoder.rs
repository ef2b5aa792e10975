//! The decoder-only transformer of the llama and qwen3 families (reference: the Hugging Face `modeling_llama` and
//! `modeling_qwen3`), over packed sequences: no padding is ever computed.

use std::cell::OnceCell;

use tch::{Device, Tensor};

use super::cuda::FusedForward;
use super::linear::{Linear, Quantization};
use super::rope::{Frequencies, RotaryTable};
use super::weights::Weights;
use super::{LmError, ModelConfig, Placement, attention, cuda};

/// Sequences laid end to end.
pub struct Batch {
    /// i64 [T].
    pub ids: Tensor,
    /// i64 [T], each token's position in its own sequence.
    pub positions: Tensor,
    /// The boundaries of the B sequences: B + 1 numbers from 0 to T.
    pub cu_seqlens: Vec<i64>,
}

impl Batch {
    /// Lays `sequences` end to end, each starting at position 0.
    pub fn pack<S: AsRef<[i64]>>(sequences: &[S], device: Device) -> Self {
        let mut ids = Vec::new();
        let mut positions = Vec::new();
        let mut cu_seqlens = vec![0];
        for sequence in sequences {
            let sequence = sequence.as_ref();
            ids.extend_from_slice(sequence);
            positions.extend(0..sequence.len() as i64);
            cu_seqlens.push(ids.len() as i64);
        }
        Self {
            ids: Tensor::from_slice(&ids).to_device(device),
            positions: Tensor::from_slice(&positions).to_device(device),
            cu_seqlens,
        }
    }
}

/// A whole model from token ids to logits. Weights are frozen; everything is differentiable in its inputs.
pub struct Decoder {
    /// [vocab, hidden].
    pub(super) embedding: Tensor,
    layers: Vec<Layer>,
    pub(super) norm: RmsNorm,
    head: Linear,
    frequencies: Frequencies,
    placement: Placement,
    /// The kernels of [`Decoder::infer`], made at its first use; None inside where the plain operations do it.
    fused: OnceCell<Option<FusedForward>>,
}

/// One transformer block: attention and gated MLP, each behind a norm and inside a residual.
pub struct Layer {
    pub(super) input_norm: RmsNorm,
    pub(super) qkv: Linear,
    pub(super) qk_norm: Option<HeadNorm>,
    pub(super) o: Linear,
    pub(super) post_norm: RmsNorm,
    pub(super) gate_up: Linear,
    pub(super) down: Linear,
    pub(super) heads: i64,
    pub(super) kv_heads: i64,
    pub(super) head_dim: i64,
}

impl Decoder {
    pub fn load(
        config: &ModelConfig,
        weights: &Weights,
        placement: Placement,
    ) -> Result<Self, LmError> {
        let shape = [config.vocab, config.hidden];
        let embedding = weights.tensor("model.embed_tokens.weight", &shape, placement)?;
        let head = match config.tied {
            true => Linear::new("lm_head", embedding.shallow_clone(), placement),
            false => Linear::load(weights, "lm_head", shape, placement)?,
        };
        let layers = (0..config.layers)
            .map(|index| Layer::load(config, weights, index, placement))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            embedding,
            layers,
            norm: RmsNorm::load(config, weights, "model.norm", placement)?,
            head,
            frequencies: Frequencies::new(&config.rope, config.head_dim, placement.device),
            placement,
            fused: OnceCell::new(),
        })
    }

    pub fn placement(&self) -> Placement {
        self.placement
    }

    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// Rounds the linear layers of all blocks. The rounded weights are kept decoded, which is as fast as dense ones and
    /// gives the same numbers, unless `packed` asks for the small form.
    pub fn quantize(&mut self, quantization: Quantization, packed: bool) -> Result<(), LmError> {
        let multiplied = quantization == Quantization::Fp8 && cuda::multiplies_e4m3(self.placement);
        for layer in &mut self.layers {
            for linear in layer.linears_mut() {
                linear.quantize(quantization)?;
                if !packed && !multiplied {
                    linear.unpack();
                }
            }
        }
        // What is computed how depends on how weights are held.
        self.fused = OnceCell::new();
        Ok(())
    }

    pub fn layers_mut(&mut self) -> &mut [Layer] {
        &mut self.layers
    }

    /// i64 [T] → [T, hidden].
    pub fn embed(&self, ids: &Tensor) -> Tensor {
        Tensor::embedding(&self.embedding, ids, -1, false, false)
    }

    /// The rotary table that every layer needs for `positions`, i64 [T].
    pub fn rotary(&self, positions: &Tensor) -> RotaryTable {
        self.frequencies.table(positions, self.placement.kind)
    }

    /// The final norm: [T, hidden] → [T, hidden].
    pub fn norm(&self, x: &Tensor) -> Tensor {
        self.norm.forward(x)
    }

    /// Hidden states after the final norm, [T, hidden].
    pub fn forward(&self, batch: &Batch) -> Tensor {
        self.forward_with(&batch.ids, &batch.positions, |_, q, k, v| {
            attention::causal_varlen(q, k, v, &batch.cu_seqlens)
        })
    }

    /// Like [`Decoder::forward`] with attention left to the caller, who may keep or reuse keys and values.
    /// `attend(layer, q [T, heads, D], k, v [T, kv_heads, D])` returns [T, heads · D].
    pub fn forward_with(
        &self,
        ids: &Tensor,
        positions: &Tensor,
        mut attend: impl FnMut(usize, &Tensor, &Tensor, &Tensor) -> Tensor,
    ) -> Tensor {
        let rotary = self.rotary(positions);
        let mut x = self.embed(ids);
        for (index, layer) in self.layers.iter().enumerate() {
            x = layer.forward(&x, &rotary, |q, k, v| attend(index, q, k, v));
        }
        self.norm(&x)
    }

    /// Like [`Decoder::forward_with`] without gradient, as fast as the device can: on a GPU in bf16 with fused kernels.
    /// Only the rows `keep`, i64 [n], go through the end of the last layer: the result is [n, hidden].
    ///
    /// # Errors
    /// What `attend` returns, or [`LmError::Kernel`].
    pub(super) fn infer(
        &self,
        ids: &Tensor,
        positions: &Tensor,
        keep: &Tensor,
        mut attend: impl FnMut(usize, &Tensor, &Tensor, &Tensor) -> Result<Tensor, LmError>,
    ) -> Result<Tensor, LmError> {
        if let Some(fused) = self.fused() {
            return fused.forward(self, ids, positions, keep, None, &mut attend);
        }
        let rotary = self.rotary(positions);
        let mut x = self.embed(ids);
        for (index, layer) in self.layers.iter().enumerate() {
            let [q, k, v] = layer.queries_keys_values(&x, &rotary);
            let mut attended = attend(index, &q, &k, &v)?;
            if index + 1 == self.layers.len() {
                x = x.index_select(0, keep);
                attended = attended.index_select(0, keep);
            }
            x = layer.after_attention(&x, &attended);
        }
        Ok(self.norm(&x))
    }

    /// The fused kernels, where this model and device have them.
    pub(super) fn fused(&self) -> Option<&FusedForward> {
        self.fused.get_or_init(|| FusedForward::of(self)).as_ref()
    }

    /// The output head.
    pub(super) fn head(&self) -> &Linear {
        &self.head
    }

    pub fn vocab(&self) -> i64 {
        self.embedding.size()[0]
    }

    /// [vocab, hidden].
    pub fn head_weight(&self) -> Tensor {
        self.head.weight()
    }

    /// The output head on chosen rows of [`Decoder::forward`]: [n, hidden] → [n, vocab].
    pub fn logits(&self, hidden: &Tensor) -> Tensor {
        self.head.forward(hidden)
    }
}

impl Layer {
    fn load(
        config: &ModelConfig,
        weights: &Weights,
        index: i64,
        placement: Placement,
    ) -> Result<Self, LmError> {
        let prefix = format!("model.layers.{index}");
        let (hidden, q_dim, kv_dim) = (config.hidden, config.q_dim(), config.kv_dim());
        let linear = |name: &str, out: i64, input: i64| {
            Linear::load(
                weights,
                &format!("{prefix}.{name}"),
                [out, input],
                placement,
            )
        };
        let norm =
            |name: &str| RmsNorm::load(config, weights, &format!("{prefix}.{name}"), placement);
        Ok(Self {
            input_norm: norm("input_layernorm")?,
            qkv: Linear::fuse(vec![
                linear("self_attn.q_proj", q_dim, hidden)?,
                linear("self_attn.k_proj", kv_dim, hidden)?,
                linear("self_attn.v_proj", kv_dim, hidden)?,
            ])?,
            qk_norm: HeadNorm::load(config, weights, &prefix, placement)?,
            o: linear("self_attn.o_proj", hidden, q_dim)?,
            post_norm: norm("post_attention_layernorm")?,
            gate_up: Linear::fuse(vec![
                linear("mlp.gate_proj", config.intermediate, hidden)?,
                linear("mlp.up_proj", config.intermediate, hidden)?,
            ])?,
            down: linear("mlp.down_proj", hidden, config.intermediate)?,
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
        })
    }

    /// The linear layers, in the order of the computation.
    pub fn linears(&self) -> [&Linear; 4] {
        [&self.qkv, &self.o, &self.gate_up, &self.down]
    }

    pub fn linears_mut(&mut self) -> [&mut Linear; 4] {
        [
            &mut self.qkv,
            &mut self.o,
            &mut self.gate_up,
            &mut self.down,
        ]
    }

    /// [T, hidden] → [T, hidden]. `attend` is called once, as in [`Decoder::forward_with`].
    pub fn forward(
        &self,
        x: &Tensor,
        rotary: &RotaryTable,
        attend: impl FnOnce(&Tensor, &Tensor, &Tensor) -> Tensor,
    ) -> Tensor {
        let [q, k, v] = self.queries_keys_values(x, rotary);
        self.after_attention(x, &attend(&q, &k, &v))
    }

    /// Rotated queries [T, heads, D] and keys, and values, [T, kv_heads, D] each.
    fn queries_keys_values(&self, x: &Tensor, rotary: &RotaryTable) -> [Tensor; 3] {
        let rotated = self.heads + self.kv_heads;
        let qkv = self.qkv.forward(&self.input_norm.forward(x));
        let qkv = qkv.view([-1, rotated + self.kv_heads, self.head_dim]);
        // Queries and keys lie side by side, so norm and rotation treat them as one tensor.
        let mut qk = qkv.narrow(1, 0, rotated);
        if let Some(norm) = &self.qk_norm {
            qk = norm.forward(&qk);
        }
        let qk = rotary.apply(&qk);
        [
            qk.narrow(1, 0, self.heads),
            qk.narrow(1, self.heads, self.kv_heads),
            qkv.narrow(1, rotated, self.kv_heads),
        ]
    }

    /// The second half, row by row: output projection and gated MLP, each with its residual.
    fn after_attention(&self, x: &Tensor, attended: &Tensor) -> Tensor {
        let x = x + self.o.forward(attended);
        let gate_up = self
            .gate_up
            .forward(&self.post_norm.forward(&x))
            .chunk(2, 1);
        let gated = gate_up[0].silu() * &gate_up[1];
        x + self.down.forward(&gated)
    }
}

/// Root mean square norm (Zhang & Sennrich 2019, arXiv:1910.07467). Normalised in f32 and rounded to the model's kind
/// before the weight is applied, as the reference does.
pub(super) struct RmsNorm {
    pub(super) weight: Tensor,
    pub(super) eps: f64,
}

impl RmsNorm {
    fn load(
        config: &ModelConfig,
        weights: &Weights,
        prefix: &str,
        placement: Placement,
    ) -> Result<Self, LmError> {
        let weight = weights.tensor(&format!("{prefix}.weight"), &[config.hidden], placement)?;
        Ok(Self {
            weight,
            eps: config.norm_eps,
        })
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        x.rms_norm(self.weight.size(), None::<&Tensor>, self.eps) * &self.weight
    }
}

/// The norm of each query and key head that qwen3 applies before rotation.
pub(super) struct HeadNorm {
    /// [heads + kv_heads, D]: the weight of each head, queries first.
    pub(super) weight: Tensor,
    pub(super) eps: f64,
}

impl HeadNorm {
    fn load(
        config: &ModelConfig,
        weights: &Weights,
        layer: &str,
        placement: Placement,
    ) -> Result<Option<Self>, LmError> {
        if !config.family.has_head_norm() {
            return Ok(None);
        }
        let load = |name: &str, heads: i64| -> Result<Tensor, LmError> {
            let name = format!("{layer}.self_attn.{name}.weight");
            let weight = weights.tensor(&name, &[config.head_dim], placement)?;
            Ok(weight.f_expand([heads, config.head_dim], false)?)
        };
        let weight = Tensor::f_cat(
            &[
                load("q_norm", config.heads)?,
                load("k_norm", config.kv_heads)?,
            ],
            0,
        )?;
        Ok(Some(Self {
            weight,
            eps: config.norm_eps,
        }))
    }

    /// [T, heads + kv_heads, D] → the same.
    fn forward(&self, x: &Tensor) -> Tensor {
        let dim = x.size()[2];
        x.rms_norm([dim], None::<&Tensor>, self.eps) * &self.weight
    }
}
