//! The 8-bit dynamic data type of bitsandbytes: a map from 256 codes to values in [-1, 1] whose exponent and fraction
//! share their bits (Dettmers 2016, arXiv:1511.04561), applied in blocks that are scaled by their largest magnitude
//! (Dettmers et al. 2022, arXiv:2110.02861).

use tch::{Device, Kind, Tensor};

/// Decimal exponents of the type, from 10^-6 to 10^0.
const EXPONENTS: i32 = 7;
/// Resolution at which bitsandbytes' CPU kernels look up the code of a scaled value.
const LOOKUP: usize = 65_536;

/// A map of 256 values and the table that finds the code of a value.
pub struct DynamicMap {
    /// f32 [256], ascending.
    values: Tensor,
    /// u8 [65536]: the code of -1 + 2·i/65535.
    codes: Tensor,
}

impl DynamicMap {
    /// For values of both signs (absolute maxima around their mean, first moments).
    pub fn signed(device: Device) -> Self {
        Self::new(&dynamic_values(true), device)
    }

    /// For values that are never negative (second moments).
    pub fn unsigned(device: Device) -> Self {
        Self::new(&dynamic_values(false), device)
    }

    fn new(values: &[f32], device: Device) -> Self {
        let middles: Vec<f32> = values
            .windows(2)
            .map(|pair| (pair[0] + pair[1]) / 2.0)
            .collect();
        let codes: Vec<u8> = (0..LOOKUP)
            .map(|index| {
                let value = (index as f64 / (LOOKUP - 1) as f64 * 2.0 - 1.0) as f32;
                middles.partition_point(|&middle| middle < value) as u8
            })
            .collect();
        Self {
            values: Tensor::from_slice(values).to_device(device),
            codes: Tensor::from_slice(&codes).to_device(device),
        }
    }

    /// f32 [256], ascending.
    pub fn values(&self) -> &Tensor {
        &self.values
    }

    /// u8 [65536]: the code of -1 + 2·i/65535.
    pub fn codes(&self) -> &Tensor {
        &self.codes
    }

    /// Rows are blocks: f32 [blocks, n] → (codes u8 [blocks, n], scales f32 [blocks]).
    pub fn quantize(&self, blocks: &Tensor) -> (Tensor, Tensor) {
        let absmax = blocks.abs().amax([1], true);
        // A block of zeros has no scale to divide by; its codes decode to zero whatever they are.
        let inverse = absmax.clamp_min(f64::from(f32::MIN_POSITIVE)).reciprocal();
        let index = ((blocks * inverse + 1.0) * 0.5 * (LOOKUP - 1) as f64 + 0.5)
            .floor()
            .to_kind(Kind::Int)
            .flatten(0, -1);
        let codes = self.codes.index_select(0, &index).view_as(blocks);
        (codes, absmax.squeeze_dim(1))
    }

    /// The inverse of [`DynamicMap::quantize`], within the resolution of the type.
    pub fn dequantize(&self, codes: &Tensor, absmax: &Tensor) -> Tensor {
        lookup(&self.values, codes) * absmax.unsqueeze(1)
    }
}

/// `values[codes]` for u8 codes of any shape.
pub(super) fn lookup(values: &Tensor, codes: &Tensor) -> Tensor {
    values
        .index_select(0, &codes.to_kind(Kind::Int).flatten(0, -1))
        .view_as(codes)
}

/// The values of the type in ascending order: per exponent the centres of 2^i (unsigned 2^(i+1)) equal parts of
/// [0.1, 1], then 0 and 1.
fn dynamic_values(signed: bool) -> Vec<f32> {
    let mut values = vec![0.0, 1.0];
    for exponent in 0..EXPONENTS {
        let scale = 10_f64.powi(exponent + 1 - EXPONENTS) as f32;
        let parts = 1 << (exponent + i32::from(!signed));
        let bounds = linspace(0.1, 1.0, parts + 1);
        for bound in bounds.windows(2) {
            let value = scale * ((bound[0] + bound[1]) / 2.0);
            values.push(value);
            if signed {
                values.push(-value);
            }
        }
    }
    values.sort_by(f32::total_cmp);
    values
}

/// `count` ≥ 2 evenly spaced numbers, computed from both ends as libtorch does, so that the bits agree.
fn linspace(start: f32, end: f32, count: i32) -> Vec<f32> {
    let step = (end - start) / (count - 1) as f32;
    (0..count)
        .map(|index| match index < count / 2 {
            true => step.mul_add(index as f32, start),
            false => (-step).mul_add((count - 1 - index) as f32, end),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_have_256_distinct_values() {
        for signed in [true, false] {
            let values = dynamic_values(signed);
            assert_eq!(values.len(), 256);
            assert!(values.windows(2).all(|pair| pair[0] < pair[1]));
            assert_eq!(values[255], 1.0);
        }
    }

    #[test]
    fn blocks_of_zeros_stay_zero() {
        let map = DynamicMap::signed(Device::Cpu);
        let zeros = Tensor::zeros([2, 256], (Kind::Float, Device::Cpu));
        let (codes, absmax) = map.quantize(&zeros);
        assert_eq!(map.dequantize(&codes, &absmax), zeros);
    }
}
