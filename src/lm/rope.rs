//! Rotary position embedding (arXiv:2104.09864) in the half-split layout of Hugging Face checkpoints.

use std::f64::consts::PI;

use tch::{Device, Kind, Tensor};

use super::config::{Rope, RopeScaling};

/// The frequencies of a model, from which tables for given positions are made.
pub(super) struct Frequencies {
    /// f32 [head_dim / 2].
    inverse: Tensor,
}

/// Cosines and sines of one batch, shared by its layers. Each is [T, 1, head_dim] in the model's kind.
pub struct RotaryTable {
    cos: Tensor,
    /// The first half is negated, which turns `rotate_half` into a plain roll.
    signed_sin: Tensor,
}

impl Frequencies {
    pub(super) fn new(rope: &Rope, head_dim: i64, device: Device) -> Self {
        let exponents =
            Tensor::arange_start_step(0, head_dim, 2, (Kind::Float, Device::Cpu)) / head_dim as f64;
        let inverse = Tensor::pow_scalar(rope.theta, &exponents).reciprocal();
        let inverse = match rope.scaling {
            RopeScaling::None => inverse,
            RopeScaling::Linear { factor } => inverse / factor,
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_context,
            } => {
                let wavelength = 2.0 * PI * inverse.reciprocal();
                let smooth = (original_context * wavelength.reciprocal() - low_freq_factor)
                    / (high_freq_factor - low_freq_factor);
                let smooth = smooth.clamp(0.0, 1.0);
                (1.0 - &smooth) * &inverse / factor + smooth * inverse
            }
        };
        Self {
            inverse: inverse.to_device(device),
        }
    }

    /// `positions`: i64 [T].
    pub(super) fn table(&self, positions: &Tensor, kind: Kind) -> RotaryTable {
        let angles = positions.to_kind(Kind::Float).unsqueeze(1) * self.inverse.unsqueeze(0);
        let cos = angles.cos();
        let sin = angles.sin();
        RotaryTable {
            cos: Tensor::cat(&[&cos, &cos], 1).to_kind(kind).unsqueeze(1),
            signed_sin: Tensor::cat(&[&-&sin, &sin], 1).to_kind(kind).unsqueeze(1),
        }
    }
}

impl RotaryTable {
    /// [T, 1, head_dim].
    pub fn cos(&self) -> &Tensor {
        &self.cos
    }

    /// [T, 1, head_dim], the first half negated.
    pub fn signed_sin(&self) -> &Tensor {
        &self.signed_sin
    }

    /// Rotates every head. `x`: [T, heads, head_dim]. Each product is rounded to the model's kind before the sum, as the
    /// reference does: in bf16 a fused multiply-add picks other tokens at near ties.
    pub fn apply(&self, x: &Tensor) -> Tensor {
        let half = x.size()[2] / 2;
        x * &self.cos + x.roll(half, 2) * &self.signed_sin
    }
}
