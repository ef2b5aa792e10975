//! Row-wise 8-bit floating-point weights (e4m3, Micikevicius et al. 2022, arXiv:2209.05433): each row scaled so that its
//! largest magnitude is the largest number of the format.

use tch::{Kind, Tensor};

use super::LmError;

/// The largest e4m3 number.
const LARGEST: f64 = 448.0;

/// A weight [out, in] at 8 bits an element and one scale a row.
pub struct Fp8 {
    /// e4m3 [out, in].
    codes: Tensor,
    /// f32 [out].
    scales: Tensor,
}

impl Fp8 {
    /// Rounds `448 · w / absmax(row)` to the nearest code, ties to even. `weight`: [out, in] of any float kind.
    pub fn encode(weight: &Tensor) -> Result<Self, LmError> {
        let weight = weight.f_to_kind(Kind::Float)?;
        let absmax = weight.f_abs()?.f_amax([1], true)?;
        // A row of zeros has no scale to divide by.
        let scales = absmax.f_clamp_min(1e-12)? / LARGEST;
        // The conversion turns what rounding pushes over the largest number into NaN.
        let scaled = (weight / &scales).f_clamp(-LARGEST, LARGEST)?;
        Ok(Self {
            codes: scaled.f_to_kind(Kind::Float8e4m3fn)?,
            scales: scales.f_squeeze_dim(1)?,
        })
    }

    /// [out, in] in `kind`.
    pub fn decode(&self, kind: Kind) -> Tensor {
        (self.codes.to_kind(Kind::Float) * self.scales.unsqueeze(1)).to_kind(kind)
    }

    /// e4m3 [out, in].
    pub fn codes(&self) -> &Tensor {
        &self.codes
    }

    /// f32 [out].
    pub fn scales(&self) -> &Tensor {
        &self.scales
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_decode_within_half_a_step_and_zero_rows_to_zero() {
        let weight =
            Tensor::from_slice(&[0.5_f32, -1.0, 0.3, 1e-4, 0.0, 0.0, 0.0, 0.0]).view([2, 4]);
        let fp8 = Fp8::encode(&weight).unwrap();
        let decoded = fp8.decode(Kind::Float);
        // Three bits of mantissa: half a step is a sixteenth of the number, or of the smallest normal one.
        let allowed = weight.abs() / 16.0 + 2_f64.powi(-10) / LARGEST;
        let error = (&decoded - &weight).abs() - allowed;
        assert!(error.max().double_value(&[]) <= 0.0, "{decoded:?}");
        assert_eq!(decoded.get(1), weight.get(1));
        assert_eq!(decoded.double_value(&[0, 1]), -1.0);
    }
}
