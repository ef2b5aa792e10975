//! Linear layers without bias: one or several over the same input, dense or quantised, with or without a LoRA update.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::cuda::Dequantise;
use super::lora::LoraUpdate;
use super::weights::{LinearWeight, Weights};
use super::{Fp8, Int8, LmError, Nf4, Placement};

/// How the weights of the linear layers are rounded. Embedding, head and norms always stay as they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Quantization {
    #[default]
    None,
    /// 4-bit NormalFloat with double quantisation: QLoRA's base.
    Nf4,
    /// 8-bit integers, scaled row by row.
    Int8,
    /// 8-bit floating point (e4m3), scaled row by row. A GPU that multiplies it does so in inference, rounding the other
    /// operand too; elsewhere the weight is decoded.
    Fp8,
}

/// `y = x · weightᵀ`, plus the update of an adapter.
///
/// Layers over one input (q/k/v, gate/up) are fused into one whose outputs lie side by side, so that one GEMM serves
/// them all; the parts keep their names.
pub struct Linear {
    parts: Vec<Part>,
    in_features: i64,
    weight: Weight,
    placement: Placement,
    update: Option<LoraUpdate>,
}

struct Part {
    /// Without `.weight`: `model.layers.0.self_attn.q_proj`.
    name: String,
    out: i64,
}

/// The frozen weight.
enum Weight {
    /// [out, in] in the kind of the layer.
    Dense(Tensor),
    /// One per part, decoded at each use.
    Packed(Vec<Packed>),
}

enum Packed {
    Nf4(Nf4),
    Int8(Int8),
    Fp8(Fp8),
}

impl Linear {
    /// One layer over a weight [out, in].
    pub fn new(name: &str, weight: Tensor, placement: Placement) -> Self {
        let (out, in_features) = (weight.size()[0], weight.size()[1]);
        let name = name.to_owned();
        Self {
            parts: vec![Part { name, out }],
            in_features,
            weight: Weight::Dense(weight),
            placement,
            update: None,
        }
    }

    /// Reads `{prefix}.weight` of shape [out, in]. A quantised weight stays packed.
    pub fn load(
        weights: &Weights,
        prefix: &str,
        shape: [i64; 2],
        placement: Placement,
    ) -> Result<Self, LmError> {
        let parts = match weights.linear(prefix, shape, placement)? {
            LinearWeight::Dense(weight) => return Ok(Self::new(prefix, weight, placement)),
            LinearWeight::Nf4(parts) => parts,
        };
        let corrupt =
            |reason| LmError::corrupt(weights.path(), "NF4", format!("`{prefix}`: {reason}"));
        let nf4 = Nf4::from_parts(parts, placement.device).map_err(corrupt)?;
        if nf4.shape() != shape {
            return Err(LmError::Shape {
                path: weights.path().to_owned(),
                name: prefix.to_owned(),
                expected: shape.to_vec(),
                found: nf4.shape().to_vec(),
            });
        }
        let name = prefix.to_owned();
        Ok(Self {
            parts: vec![Part {
                name,
                out: shape[0],
            }],
            in_features: shape[1],
            weight: Weight::Packed(vec![Packed::Nf4(nf4)]),
            placement,
            update: None,
        })
    }

    /// Lays layers over the same input side by side. They stay packed if they all are.
    pub fn fuse(layers: Vec<Self>) -> Result<Self, LmError> {
        let (placement, in_features) = (layers[0].placement, layers[0].in_features);
        let all_packed = layers
            .iter()
            .all(|layer| matches!(layer.weight, Weight::Packed(_)));
        let mut dense = Vec::new();
        let mut packed = Vec::new();
        let mut parts = Vec::new();
        for layer in layers {
            match layer.weight {
                Weight::Packed(weight) if all_packed => packed.extend(weight),
                _ => dense.push(layer.weight()),
            }
            parts.extend(layer.parts);
        }
        let weight = match all_packed {
            true => Weight::Packed(packed),
            false => Weight::Dense(Tensor::f_cat(&dense, 0)?),
        };
        Ok(Self {
            parts,
            in_features,
            weight,
            placement,
            update: None,
        })
    }

    /// [T, in] → [T, out], the parts in order along the last dimension.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        if let Some(merged) = self.merged() {
            return x.linear::<Tensor>(merged, None);
        }
        let y = x.linear::<Tensor>(&self.weight(), None);
        match &self.update {
            None => y,
            Some(update) => update.apply(y, x),
        }
    }

    /// [out, in] in the kind of the layer, without the adapter; decoded if it is packed.
    pub fn weight(&self) -> Tensor {
        match &self.weight {
            Weight::Dense(weight) => weight.shallow_clone(),
            Weight::Packed(parts) => {
                let parts: Vec<Tensor> = parts
                    .iter()
                    .map(|part| part.decode(self.placement.kind))
                    .collect();
                match parts.len() {
                    1 => parts[0].shallow_clone(),
                    _ => Tensor::cat(&parts, 0),
                }
            }
        }
    }

    /// The names and output widths of the parts.
    pub fn parts(&self) -> impl Iterator<Item = (&str, i64)> {
        self.parts.iter().map(|part| (part.name.as_str(), part.out))
    }

    pub fn in_features(&self) -> i64 {
        self.in_features
    }

    pub fn out_features(&self) -> i64 {
        self.parts.iter().map(|part| part.out).sum()
    }

    /// Rounds a dense weight; one that is packed already stays as it is. Each part is rounded by itself, as if it were
    /// a layer of its own.
    pub fn quantize(&mut self, quantization: Quantization) -> Result<(), LmError> {
        let Weight::Dense(weight) = &self.weight else {
            return Ok(());
        };
        if quantization == Quantization::Fp8 {
            // Rows are rounded by themselves anyway, and one product can then serve all parts.
            self.weight = Weight::Packed(vec![Packed::Fp8(Fp8::encode(weight)?)]);
            return Ok(());
        }
        let mut packed = Vec::new();
        let mut row = 0;
        for part in &self.parts {
            let rows = weight.f_narrow(0, row, part.out)?;
            row += part.out;
            packed.push(match quantization {
                Quantization::None | Quantization::Fp8 => return Ok(()),
                Quantization::Nf4 => Packed::Nf4(Nf4::encode(&rows, true)?),
                Quantization::Int8 => Packed::Int8(Int8::encode(&rows)?),
            });
        }
        self.weight = Weight::Packed(packed);
        Ok(())
    }

    /// The dense weight to compute with, where it is held as such; the update may be in it.
    pub(super) fn dense(&self) -> Option<&Tensor> {
        self.merged().or(match &self.weight {
            Weight::Dense(weight) => Some(weight),
            Weight::Packed(_) => None,
        })
    }

    fn merged(&self) -> Option<&Tensor> {
        self.update.as_ref()?.merged.as_ref()
    }

    /// What [`Linear::keep_merged`] allocates.
    pub(super) fn merged_bytes(&self) -> u64 {
        match (&self.weight, &self.update) {
            (Weight::Dense(weight), Some(_)) => {
                (weight.numel() * weight.kind().elt_size_in_bytes()) as u64
            }
            _ => 0,
        }
    }

    /// Computes with a copy of a dense weight that has the update in it; the weight stays for when the update goes.
    pub(super) fn keep_merged(&mut self) -> Result<(), LmError> {
        if let (Weight::Dense(weight), Some(update)) = (&self.weight, &mut self.update) {
            let merged = tch::no_grad(|| update.merged(weight).f_to_kind(weight.kind()))?;
            update.merged = Some(merged);
        }
        Ok(())
    }

    /// The packed 8-bit floating-point weight, where that is how it is held.
    pub(super) fn fp8(&self) -> Option<&Fp8> {
        match &self.weight {
            Weight::Packed(parts) => match &parts[..] {
                [Packed::Fp8(fp8)] => Some(fp8),
                _ => None,
            },
            Weight::Dense(_) => None,
        }
    }

    /// Keeps the decoded weight instead of the packed one: the same numbers for more memory and no decoding.
    pub fn unpack(&mut self) {
        self.weight = Weight::Dense(self.weight());
    }

    /// Moves a dense weight into the front of a wider matrix [out, in + extra], whose last columns are the caller's, and
    /// returns that; the layer goes on computing with the front. None for a packed weight.
    pub(super) fn widen(&mut self, extra: i64) -> Result<Option<Tensor>, LmError> {
        let Weight::Dense(weight) = &self.weight else {
            return Ok(None);
        };
        let [out, inner] = weight.size()[..] else {
            unreachable!("a linear weight has two dimensions")
        };
        let wide = Tensor::f_empty([out, inner + extra], (weight.kind(), weight.device()))?;
        let mut front = wide.f_narrow(1, 0, inner)?;
        front.f_copy_(weight)?;
        self.weight = Weight::Dense(front);
        Ok(Some(wide))
    }

    /// Whether [`Linear::decode_into`] can decode the weight; dense weights need not be decoded.
    pub(super) fn decodes_in_a_kernel(&self) -> bool {
        match &self.weight {
            Weight::Dense(_) => true,
            Weight::Packed(parts) => parts.iter().all(|part| match part {
                Packed::Nf4(nf4) => Dequantise::fits(nf4),
                Packed::Int8(int8) => int8.codes().size()[1] % 8 == 0,
                Packed::Fp8(_) => false,
            }),
        }
    }

    /// Decodes a packed weight into the front of each row of `wide` [out, ≥ in].
    pub(super) fn decode_into(
        &self,
        dequantise: &Dequantise,
        wide: &Tensor,
    ) -> Result<(), LmError> {
        let Weight::Packed(weights) = &self.weight else {
            return Ok(());
        };
        let mut row = 0;
        for packed in weights {
            let out = packed.rows();
            let rows = wide.f_narrow(0, row, out)?;
            row += out;
            match packed {
                Packed::Nf4(nf4) => dequantise.nf4(nf4, &rows)?,
                Packed::Int8(int8) => dequantise.int8(int8, &rows)?,
                Packed::Fp8(fp8) => {
                    rows.narrow(1, 0, self.in_features)
                        .f_copy_(&fp8.decode(self.placement.kind))?;
                }
            }
        }
        Ok(())
    }

    /// Replaces the update of an adapter.
    pub fn set_update(&mut self, update: Option<LoraUpdate>) {
        self.update = update;
    }

    /// Exchanges the update of an adapter for another, or for none.
    pub(super) fn swap_update(&mut self, other: &mut Option<LoraUpdate>) {
        std::mem::swap(&mut self.update, other);
    }

    /// The update that is computed beside the weight.
    pub fn update(&self) -> Option<&LoraUpdate> {
        let update = self.update.as_ref();
        update.filter(|update| update.merged.is_none())
    }

    /// Adds the update into the weight, which becomes dense, and drops it.
    pub fn merge(&mut self) {
        if let Some(update) = self.update.take() {
            let merged = tch::no_grad(|| update.merged(&self.weight()));
            self.weight = Weight::Dense(merged.to_kind(self.placement.kind));
        }
    }
}

impl Packed {
    fn rows(&self) -> i64 {
        match self {
            Self::Nf4(nf4) => nf4.shape()[0],
            Self::Int8(int8) => int8.codes().size()[0],
            Self::Fp8(fp8) => fp8.codes().size()[0],
        }
    }

    fn decode(&self, kind: Kind) -> Tensor {
        match self {
            Self::Nf4(nf4) => nf4.decode(kind),
            Self::Int8(int8) => int8.decode(kind),
            Self::Fp8(fp8) => fp8.decode(kind),
        }
    }
}
