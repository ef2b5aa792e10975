//! Row-wise 8-bit weights: each row scaled by its largest magnitude (LLM.int8, Dettmers et al. 2022, arXiv:2208.07339).

use tch::{Kind, Tensor};

use super::LmError;

/// A weight [out, in] at 8 bits an element and one scale a row.
pub struct Int8 {
    /// i8 [out, in].
    codes: Tensor,
    /// f32 [out]: the largest magnitude of each row.
    absmax: Tensor,
}

impl Int8 {
    /// Rounds `127 · w / absmax(row)` to the nearest integer, ties to even. `weight`: [out, in] of any float kind.
    pub fn encode(weight: &Tensor) -> Result<Self, LmError> {
        let weight = weight.f_to_kind(Kind::Float)?;
        let absmax = weight.f_abs()?.f_amax([1], true)?;
        // A row of zeros has no scale to divide by.
        let scaled = weight * (absmax.clamp_min(f64::from(f32::MIN_POSITIVE)).reciprocal() * 127.0);
        Ok(Self {
            codes: scaled.f_round()?.f_to_kind(Kind::Int8)?,
            absmax: absmax.f_squeeze_dim(1)?,
        })
    }

    /// [out, in] in `kind`.
    pub fn decode(&self, kind: Kind) -> Tensor {
        let scale = self.absmax.unsqueeze(1) / 127.0;
        (self.codes.to_kind(Kind::Float) * scale).to_kind(kind)
    }

    /// i8 [out, in].
    pub fn codes(&self) -> &Tensor {
        &self.codes
    }

    /// f32 [out].
    pub fn absmax(&self) -> &Tensor {
        &self.absmax
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_decode_within_half_a_step_and_zero_rows_to_zero() {
        let weight = Tensor::from_slice(&[0.5_f32, -1.0, 0.25, 0.0, 0.0, 0.0]).view([2, 3]);
        let int8 = Int8::encode(&weight).unwrap();
        let error = (int8.decode(Kind::Float) - &weight)
            .abs()
            .max()
            .double_value(&[]);
        assert!(error <= 0.5 / 127.0, "{error}");
        assert_eq!(int8.decode(Kind::Float).get(1), weight.get(1));
    }
}
