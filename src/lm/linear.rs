//! Linear layers without bias, alone and in groups that share their input.

use tch::Tensor;

use super::weights::{LinearWeight, Weights};
use super::{LmError, Placement};

/// `y = x · weightᵀ`.
pub struct Linear {
    /// [out, in], frozen.
    weight: Tensor,
}

impl Linear {
    pub fn new(weight: Tensor) -> Self {
        Self { weight }
    }

    /// Reads `{prefix}.weight` of shape [out, in].
    pub fn load(
        weights: &Weights,
        prefix: &str,
        shape: [i64; 2],
        placement: Placement,
    ) -> Result<Self, LmError> {
        match weights.linear(prefix, shape, placement)? {
            LinearWeight::Dense(weight) => Ok(Self::new(weight)),
            LinearWeight::Nf4(_) => Err(LmError::unsupported(
                weights.path(),
                format!("NF4 weights (`{prefix}`)"),
            )),
        }
    }

    /// [T, in] → [T, out].
    pub fn forward(&self, x: &Tensor) -> Tensor {
        x.linear::<Tensor>(&self.weight, None)
    }

    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    pub fn out_features(&self) -> i64 {
        self.weight.size()[0]
    }
}

/// Linear layers over one input (q/k/v, gate/up) whose outputs lie side by side, so that one GEMM serves them all.
///
/// Each part's weight is a view of rows of the fused one: an adapter may wrap a part without a second copy.
pub struct LinearGroup {
    /// [sum of out, in].
    fused: Tensor,
    parts: Vec<Linear>,
}

impl LinearGroup {
    pub fn new(parts: Vec<Linear>) -> Self {
        let weights: Vec<&Tensor> = parts.iter().map(Linear::weight).collect();
        let fused = Tensor::cat(&weights, 0);
        let sizes: Vec<i64> = parts.iter().map(Linear::out_features).collect();
        let parts = fused
            .split_with_sizes(sizes, 0)
            .into_iter()
            .map(Linear::new)
            .collect();
        Self { fused, parts }
    }

    /// [T, in] → [T, sum of out], the parts in order along the last dimension.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        x.linear::<Tensor>(&self.fused, None)
    }

    pub fn parts(&self) -> &[Linear] {
        &self.parts
    }
}
