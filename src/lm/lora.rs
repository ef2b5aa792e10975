//! Low-rank adaptation of linear layers: LoRA (Hu et al. 2021, arXiv:2106.09685), its rank-stabilised scale
//! (Kalajdzievski 2023, arXiv:2312.03732) and DoRA (Liu et al. 2024, arXiv:2402.09353).

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::dropout::Dropout;

/// The linear layers of a decoder block, by the names of Hugging Face checkpoints.
pub const ALL_LINEARS: [&str; 7] = [
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
];

/// What an adapter looks like.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoraConfig {
    /// Rank of the update.
    pub r: i64,
    pub alpha: f64,
    /// Probability with which an element of the adapter's input is dropped in training.
    pub dropout: f64,
    /// Names of the linear layers that get an update.
    pub targets: Vec<String>,
    /// Scale by `alpha / √r` instead of `alpha / r`.
    pub rslora: bool,
    /// Learn the length of each output row apart from its direction.
    pub dora: bool,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self {
            r: 16,
            alpha: 32.0,
            dropout: 0.05,
            targets: ALL_LINEARS.map(str::to_owned).to_vec(),
            rslora: false,
            dora: false,
        }
    }
}

impl LoraConfig {
    /// The factor of the update `B · A`.
    pub fn scale(&self) -> f64 {
        match self.rslora {
            true => self.alpha / (self.r as f64).sqrt(),
            false => self.alpha / self.r as f64,
        }
    }

    /// Whether the layer called `name` (`model.layers.0.self_attn.q_proj`) gets an update.
    pub fn covers(&self, name: &str) -> bool {
        let last = name.rsplit('.').next().unwrap_or(name);
        self.targets.iter().any(|target| target == last)
    }
}

/// The update of one (possibly fused) linear layer, in the kind it computes in. All tensors are leaves that ask for
/// gradients.
pub struct LoraUpdate {
    /// [P · r, in]: the A matrices of the P parts that have an update.
    pub a: Tensor,
    /// [out, P · r]: the scaled B matrices as blocks, zero elsewhere, so that one product serves all parts.
    pub b: Tensor,
    pub dora: Option<Dora>,
    /// On the input of the update, in training only.
    pub dropout: Option<Dropout>,
    /// [out, in]: weight and update in one, rounded to the kind of the layer, which then computes with it alone.
    pub merged: Option<Tensor>,
}

/// Row lengths of DoRA, f32 whatever the layer computes in: the learnt ones differ from `norm` by small steps.
pub struct Dora {
    /// [out]: a leaf.
    pub magnitude: Tensor,
    /// [out]: ‖W + scale · B · A‖ of each row, a constant to the gradient as in the paper (section 4.3).
    pub norm: Tensor,
}

impl LoraUpdate {
    /// Adds the update to `y` = x · Wᵀ. `x`: [T, in]; `y`: [T, out], consumed.
    pub fn apply(&self, mut y: Tensor, x: &Tensor) -> Tensor {
        let low = match &self.dropout {
            Some(dropout) => dropout.apply(x).linear::<Tensor>(&self.a, None),
            None => x.linear::<Tensor>(&self.a, None),
        };
        // In place: the product before it needs its output for no gradient.
        let y = y.addmm_(&low, &self.b.tr());
        match &self.dora {
            None => y,
            Some(dora) => {
                let kind = y.kind();
                (y * (&dora.magnitude / &dora.norm)).to_kind(kind)
            }
        }
    }

    /// W + scale · B · A, with DoRA's row lengths, in f32. `weight`: [out, in].
    pub fn merged(&self, weight: &Tensor) -> Tensor {
        let sum = weight.to_kind(Kind::Float)
            + self
                .b
                .to_kind(Kind::Float)
                .matmul(&self.a.to_kind(Kind::Float));
        match &self.dora {
            None => sum,
            Some(dora) => sum * (&dora.magnitude / &dora.norm).unsqueeze(1),
        }
    }

    /// The leaves, in the order in which [`super::Adapter::accumulate`] takes their gradients.
    pub fn leaves(&self) -> Vec<&Tensor> {
        let mut leaves = vec![&self.a, &self.b];
        leaves.extend(self.dora.as_ref().map(|dora| &dora.magnitude));
        leaves
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_and_targets() {
        let mut config = LoraConfig {
            r: 4,
            alpha: 8.0,
            ..LoraConfig::default()
        };
        assert_eq!(config.scale(), 2.0);
        config.rslora = true;
        assert_eq!(config.scale(), 4.0);
        config.targets = vec!["q_proj".to_owned()];
        assert!(config.covers("model.layers.3.self_attn.q_proj"));
        assert!(!config.covers("model.layers.3.self_attn.k_proj"));
    }
}
