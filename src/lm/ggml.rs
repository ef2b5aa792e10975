//! The block formats of GGML tensors and their decoding to f32 (reference: `ggml-quants.c` of llama.cpp).

use half::f16;
use rayon::prelude::*;
use tch::Kind;

/// How the elements of a tensor are stored, in blocks along its rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BlockFormat {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4K,
    Q5K,
    Q6K,
}

impl BlockFormat {
    /// From the type id of a GGUF tensor entry.
    pub(super) fn from_id(id: u32) -> Option<Self> {
        Some(match id {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            6 => Self::Q5_0,
            7 => Self::Q5_1,
            8 => Self::Q8_0,
            12 => Self::Q4K,
            13 => Self::Q5K,
            14 => Self::Q6K,
            30 => Self::Bf16,
            _ => return None,
        })
    }

    /// Elements per block.
    pub(super) fn elements(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => 32,
            Self::Q4K | Self::Q5K | Self::Q6K => 256,
        }
    }

    /// Bytes per block.
    pub(super) fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// The torch kind of formats that need no decoding.
    pub(super) fn plain_kind(self) -> Option<Kind> {
        match self {
            Self::F32 => Some(Kind::Float),
            Self::F16 => Some(Kind::Half),
            Self::Bf16 => Some(Kind::BFloat16),
            _ => None,
        }
    }
}

/// Decodes whole blocks of a quantised format. `bytes` holds a whole number of blocks.
pub(super) fn dequantise(format: BlockFormat, bytes: &[u8]) -> Vec<f32> {
    let decode: fn(&[u8], &mut [f32]) = match format {
        BlockFormat::Q4_0 => q4_0,
        BlockFormat::Q4_1 => q4_1,
        BlockFormat::Q5_0 => q5_0,
        BlockFormat::Q5_1 => q5_1,
        BlockFormat::Q8_0 => q8_0,
        BlockFormat::Q4K => q4_k,
        BlockFormat::Q5K => q5_k,
        BlockFormat::Q6K => q6_k,
        BlockFormat::F32 | BlockFormat::F16 | BlockFormat::Bf16 => {
            unreachable!("plain formats are tensors already")
        }
    };
    let mut values = vec![0.0; bytes.len() / format.bytes() * format.elements()];
    values
        .par_chunks_exact_mut(format.elements())
        .zip(bytes.par_chunks_exact(format.bytes()))
        .with_min_len(256)
        .for_each(|(values, block)| decode(block, values));
    values
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Half a byte each: the first 16 elements in the low nibbles, the others in the high ones.
fn nibbles(packed: &[u8], out: &mut [f32], value: impl Fn(usize, u8) -> f32) {
    let (low, high) = out.split_at_mut(packed.len());
    for (index, &byte) in packed.iter().enumerate() {
        low[index] = value(index, byte & 15);
        high[index] = value(index + packed.len(), byte >> 4);
    }
}

fn q4_0(block: &[u8], out: &mut [f32]) {
    let scale = half_at(block, 0);
    nibbles(&block[2..], out, |_, q| (f32::from(q) - 8.0) * scale);
}

fn q4_1(block: &[u8], out: &mut [f32]) {
    let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
    nibbles(&block[4..], out, |_, q| f32::from(q) * scale + minimum);
}

fn q5_0(block: &[u8], out: &mut [f32]) {
    let scale = half_at(block, 0);
    let fifth = fifth_bits(&block[2..6]);
    nibbles(&block[6..], out, |index, q| {
        (f32::from(q | fifth(index)) - 16.0) * scale
    });
}

fn q5_1(block: &[u8], out: &mut [f32]) {
    let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
    let fifth = fifth_bits(&block[4..8]);
    nibbles(&block[8..], out, |index, q| {
        f32::from(q | fifth(index)) * scale + minimum
    });
}

fn fifth_bits(bytes: &[u8]) -> impl Fn(usize) -> u8 {
    let bits = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    move |index| ((bits >> index & 1) as u8) << 4
}

fn q8_0(block: &[u8], out: &mut [f32]) {
    let scale = half_at(block, 0);
    for (out, &q) in out.iter_mut().zip(&block[2..]) {
        *out = f32::from(q as i8) * scale;
    }
}

/// The 6-bit scale and minimum of each of the eight groups of 32 in a K block, packed into 12 bytes.
fn group_scale(packed: &[u8], group: usize) -> (f32, f32) {
    let (scale, minimum) = match group {
        0..4 => (packed[group] & 63, packed[group + 4] & 63),
        _ => (
            packed[group + 4] & 15 | packed[group - 4] >> 6 << 4,
            packed[group + 4] >> 4 | packed[group] >> 6 << 4,
        ),
    };
    (f32::from(scale), f32::from(minimum))
}

fn q4_k(block: &[u8], out: &mut [f32]) {
    k_block(block, &block[16..], out, |_, _| 0);
}

fn q5_k(block: &[u8], out: &mut [f32]) {
    let high = &block[16..48];
    k_block(block, &block[48..], out, |group, index| {
        (high[index] >> group & 1) << 4
    });
}

/// Eight groups of 32; groups 2n and 2n + 1 share 32 bytes, the even one in the low nibbles.
fn k_block(block: &[u8], packed: &[u8], out: &mut [f32], high_bit: impl Fn(usize, usize) -> u8) {
    let (d, d_min) = (half_at(block, 0), half_at(block, 2));
    for (pair, (out, packed)) in out
        .chunks_exact_mut(64)
        .zip(packed.chunks_exact(32))
        .enumerate()
    {
        let (scale_0, minimum_0) = group_scale(&block[4..16], 2 * pair);
        let (scale_1, minimum_1) = group_scale(&block[4..16], 2 * pair + 1);
        nibbles(packed, out, |index, q| match index {
            0..32 => {
                let q = q | high_bit(2 * pair, index);
                d * scale_0 * f32::from(q) - d_min * minimum_0
            }
            _ => {
                let q = q | high_bit(2 * pair + 1, index - 32);
                d * scale_1 * f32::from(q) - d_min * minimum_1
            }
        });
    }
}

fn q6_k(block: &[u8], out: &mut [f32]) {
    let d = half_at(block, 208);
    for (half, out) in out.chunks_exact_mut(128).enumerate() {
        let low = &block[64 * half..];
        let high = &block[128 + 32 * half..];
        let scales = &block[192 + 8 * half..];
        for (index, out) in out.iter_mut().enumerate() {
            let (quarter, within) = (index / 32, index % 32);
            let low = low[within + quarter % 2 * 32] >> (quarter / 2 * 4) & 15;
            let high = high[within] >> (2 * quarter) & 3;
            let scale = scales[index / 16] as i8;
            *out = d * f32::from(scale) * (f32::from(low | high << 4) - 32.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Blocks with byte i = 37 i + 11 and sane scales; the values and their sum weighted by position (from 1) are what
    /// the gguf Python package (0.19) decodes them to.
    #[test]
    fn decodes_like_the_reference() {
        const SCALE: [u8; 2] = [0x00, 0x38];
        const MINIMUM: [u8; 2] = [0x00, 0x34];
        type Case = (BlockFormat, &'static [(usize, [u8; 2])], [f32; 4], f64);
        let cases: [Case; 8] = [
            (
                BlockFormat::Q4_0,
                &[(0, SCALE)],
                [-1.5, 1.0, -0.5, 0.0],
                -259.0,
            ),
            (
                BlockFormat::Q4_1,
                &[(0, SCALE), (2, MINIMUM)],
                [7.75, 2.25, 6.25, 6.25],
                2123.5,
            ),
            (
                BlockFormat::Q5_0,
                &[(0, SCALE)],
                [4.5, -1.0, 0.0, 0.5],
                56.0,
            ),
            (
                BlockFormat::Q5_1,
                &[(0, SCALE), (2, MINIMUM)],
                [9.75, 12.25, 2.75, 2.75],
                4082.5,
            ),
            (
                BlockFormat::Q8_0,
                &[(0, SCALE)],
                [42.5, 61.0, -27.0, -24.0],
                -4040.0,
            ),
            (
                BlockFormat::Q4K,
                &[(0, SCALE), (2, MINIMUM)],
                [157.75, -12.75, -3.0, 24.25],
                3786420.0,
            ),
            (
                BlockFormat::Q5K,
                &[(0, SCALE), (2, MINIMUM)],
                [405.75, -12.75, -3.0, 54.25],
                8013724.0,
            ),
            (
                BlockFormat::Q6K,
                &[(208, SCALE)],
                [-715.5, 848.0, 208.0, -30.0],
                392210.0,
            ),
        ];
        for (format, scales, expected, weighted_sum) in cases {
            let mut block: Vec<u8> = (0..format.bytes()).map(|i| (i * 37 + 11) as u8).collect();
            for &(at, bytes) in scales {
                block[at..at + 2].copy_from_slice(&bytes);
            }
            let values = dequantise(format, &[block.clone(), block].concat());
            let count = format.elements();
            assert_eq!(values[..count], values[count..], "{format:?}");
            let found = [0, 1, count / 2 + 1, count - 1].map(|index| values[index]);
            assert_eq!(found, expected, "{format:?}");
            let sum: f64 = (1..)
                .zip(&values[..count])
                .map(|(i, &x)| f64::from(i) * f64::from(x))
                .sum();
            assert_eq!(sum, weighted_sum, "{format:?}");
        }
    }
}
