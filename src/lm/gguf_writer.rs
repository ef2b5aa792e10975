//! Writes a merged model as a GGUF file (specification: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>; names
//! and metadata as llama.cpp's converter gives them), with matrices in F16 or Q8_0 and vectors in F32.

use std::io::{BufWriter, Write};
use std::path::Path;

use half::f16;
use rayon::prelude::*;
use serde_json::Value;
use tch::{Kind, Tensor};

use super::gguf_metadata::{Metadata, metadata};
use super::merged::Merged;
use super::weights::gguf_name;
use super::{Family, LmError};

/// How the matrices of a GGUF are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GgufFormat {
    F16,
    /// Blocks of 32 along a row: a scale in f16 and 32 signed bytes.
    Q8_0,
}

const ALIGNMENT: usize = 32;
const VERSION: u32 = 3;
/// Elements and bytes of a block of Q8_0.
const BLOCK: usize = 32;
const BLOCK_BYTES: usize = 34;

impl GgufFormat {
    /// `general.file_type`: mostly of this format.
    fn file_type(self) -> u32 {
        match self {
            Self::F16 => 1,
            Self::Q8_0 => 7,
        }
    }
}

/// Type ids of tensor entries.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stored {
    F32 = 0,
    F16 = 1,
    Q8_0 = 8,
}

impl Stored {
    /// Vectors stay exact; so do matrices in f16 whose rows do not divide into blocks.
    fn of(format: GgufFormat, shape: &[i64]) -> Self {
        match (format, shape) {
            (_, [_]) => Self::F32,
            (GgufFormat::Q8_0, [.., row]) if row % BLOCK as i64 == 0 => Self::Q8_0,
            _ => Self::F16,
        }
    }

    fn bytes(self, shape: &[i64]) -> usize {
        let elements = shape.iter().product::<i64>() as usize;
        match self {
            Self::F32 => elements * 4,
            Self::F16 => elements * 2,
            Self::Q8_0 => elements / BLOCK * BLOCK_BYTES,
        }
    }
}

/// Writes `model` to `path`; a crash leaves the old file or none. `name` becomes `general.name`. Returns the file's bytes.
///
/// # Errors
/// Tokenizers and settings that the format has no words for; what cannot be read or written.
pub fn write_gguf(
    model: &Merged,
    path: &Path,
    format: GgufFormat,
    name: &str,
) -> Result<u64, LmError> {
    let tensors: Vec<Entry> = entries(model, format);
    let pairs = metadata(model, name, format.file_type())
        .map_err(|reason| LmError::unsupported(path, reason))?;
    let folder = match path.parent() {
        Some(folder) if folder.as_os_str().is_empty() => Path::new("."),
        Some(folder) => folder,
        None => Path::new("."),
    };
    let failed = |error| LmError::write(path, error);
    std::fs::create_dir_all(folder).map_err(failed)?;
    let file = tempfile::NamedTempFile::new_in(folder).map_err(failed)?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    let header = header(&pairs, &tensors);
    out.write_all(&header).map_err(failed)?;
    let mut total = header.len() as u64;
    for entry in &tensors {
        let tensor = permuted(model, &entry.name, model.tensor(&entry.name, &entry.shape)?)?;
        let mut bytes = encode(&tensor, entry.stored).map_err(|reason| {
            LmError::unsupported(path, format!("tensor `{}`: {reason}", entry.name))
        })?;
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
        out.write_all(&bytes).map_err(failed)?;
        total += bytes.len() as u64;
    }
    let file = out
        .into_inner()
        .map_err(|error| failed(error.into_error()))?;
    file.as_file().sync_all().map_err(failed)?;
    file.persist(path).map_err(|error| failed(error.error))?;
    Ok(total)
}

struct Entry {
    /// Of Hugging Face checkpoints.
    name: String,
    shape: Vec<i64>,
    stored: Stored,
    /// From the start of the data.
    offset: u64,
}

fn entries(model: &Merged, format: GgufFormat) -> Vec<Entry> {
    let mut offset = 0;
    let tensors = model.tensors().into_iter();
    tensors
        .map(|(name, shape)| {
            let stored = Stored::of(format, &shape);
            let start = offset;
            offset += stored.bytes(&shape).next_multiple_of(ALIGNMENT) as u64;
            Entry {
                name,
                shape,
                stored,
                offset: start,
            }
        })
        .collect()
}

/// Everything in front of the data, padded.
fn header(pairs: &[(String, Metadata)], tensors: &[Entry]) -> Vec<u8> {
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend((tensors.len() as u64).to_le_bytes());
    bytes.extend((pairs.len() as u64).to_le_bytes());
    for (key, value) in pairs {
        text(&mut bytes, key);
        bytes.extend(value.type_id().to_le_bytes());
        value.write(&mut bytes);
    }
    for entry in tensors {
        text(&mut bytes, &gguf_name(&entry.name).unwrap_or_default());
        bytes.extend((entry.shape.len() as u32).to_le_bytes());
        // Innermost dimension first.
        for size in entry.shape.iter().rev() {
            bytes.extend((*size as u64).to_le_bytes());
        }
        bytes.extend((entry.stored as u32).to_le_bytes());
        bytes.extend(entry.offset.to_le_bytes());
    }
    bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
    bytes
}

/// A string as the format has it: its length in bytes, then the bytes.
pub(super) fn text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

/// Llama GGUFs interleave the two rotary halves of each query and key head; see `PermutedHeads` for the way back.
fn permuted(model: &Merged, name: &str, tensor: Tensor) -> Result<Tensor, LmError> {
    let config = model.config();
    let heads = match name {
        _ if config.family != Family::Llama => return Ok(tensor),
        _ if name.ends_with("self_attn.q_proj.weight") => config.heads,
        _ if name.ends_with("self_attn.k_proj.weight") => config.kv_heads,
        _ => return Ok(tensor),
    };
    let shape = tensor.size();
    let split = tensor.f_reshape([heads, 2, shape[0] / heads / 2, shape[1]])?;
    Ok(split.f_transpose(1, 2)?.f_reshape(&shape)?)
}

/// The bytes of a tensor in f32.
fn encode(tensor: &Tensor, stored: Stored) -> Result<Vec<u8>, String> {
    let tensor = tensor.to_kind(Kind::Float).contiguous();
    let values = Vec::<f32>::try_from(tensor.flatten(0, -1)).map_err(|error| error.to_string())?;
    if let Some(odd) = values.par_iter().find_any(|value| !value.is_finite()) {
        return Err(format!("it holds {odd}"));
    }
    match stored {
        Stored::F32 => Ok(values
            .par_iter()
            .flat_map_iter(|value| value.to_le_bytes())
            .collect()),
        Stored::F16 => match values
            .par_iter()
            .find_any(|value| f16::from_f32(**value).is_infinite())
        {
            Some(large) => Err(format!("f16 has no room for {large}")),
            None => Ok(values
                .par_iter()
                .flat_map_iter(|value| f16::from_f32(*value).to_le_bytes())
                .collect()),
        },
        Stored::Q8_0 => {
            let mut bytes = vec![0; values.len() / BLOCK * BLOCK_BYTES];
            bytes
                .par_chunks_exact_mut(BLOCK_BYTES)
                .zip(values.par_chunks_exact(BLOCK))
                .with_min_len(256)
                .for_each(|(bytes, values)| q8_0(values, bytes));
            Ok(bytes)
        }
    }
}

/// One block (reference: `quantize_row_q8_0_ref` of llama.cpp).
fn q8_0(values: &[f32], bytes: &mut [u8]) {
    let most = values
        .iter()
        .fold(0.0_f32, |most, value| most.max(value.abs()));
    let scale = most / 127.0;
    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    bytes[..2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
    for (byte, value) in bytes[2..].iter_mut().zip(values) {
        *byte = (value * inverse).round() as i8 as u8;
    }
}

/// The vocabulary's tokens and merges of a `tokenizer.json`, for the metadata.
pub(super) fn merges(tokenizer: &Value) -> Vec<String> {
    let merges = tokenizer["model"]["merges"].as_array();
    let merges = merges.into_iter().flatten();
    merges
        .filter_map(|merge| match merge {
            Value::String(merge) => Some(merge.clone()),
            // Newer files keep the two halves apart.
            Value::Array(halves) => Some(format!(
                "{} {}",
                halves.first()?.as_str()?,
                halves.get(1)?.as_str()?
            )),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lm::ggml::{BlockFormat, dequantise};

    #[test]
    fn blocks_of_8_bit_are_read_back_to_half_a_step() {
        let values: Vec<f32> = (0..64)
            .map(|i| (i as f32 * 0.37).sin() * (1.0 + i as f32))
            .collect();
        let tensor = Tensor::from_slice(&values).view([2, 32]);
        let bytes = encode(&tensor, Stored::Q8_0).unwrap();
        let back = dequantise(BlockFormat::Q8_0, &bytes);
        for (block, values) in back.chunks(32).zip(values.chunks(32)) {
            let most = values
                .iter()
                .fold(0.0_f32, |most, value| most.max(value.abs()));
            for (back, value) in block.iter().zip(values) {
                // Half a step, and what rounding the scale to f16 adds.
                assert!(
                    (back - value).abs() <= most / 127.0 * 0.5 + most / 2048.0,
                    "{value} became {back}"
                );
            }
        }
        assert_eq!(
            encode(
                &Tensor::zeros([1, 32], (Kind::Float, tch::Device::Cpu)),
                Stored::Q8_0
            )
            .unwrap(),
            [0; 34]
        );
    }

    #[test]
    fn numbers_that_f16_cannot_hold_are_refused() {
        let tensor = Tensor::from_slice(&[1.0_f32, 1e6]).view([1, 2]);
        assert_eq!(
            encode(&tensor, Stored::F16).unwrap_err(),
            "f16 has no room for 1000000"
        );
        let tensor = Tensor::from_slice(&[1.0_f32, f32::NAN]);
        assert_eq!(encode(&tensor, Stored::F32).unwrap_err(), "it holds NaN");
    }
}
