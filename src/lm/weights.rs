//! One source of named tensors, whatever the checkpoint: a folder of safetensors shards or a GGUF file.
//! Names are those of Hugging Face checkpoints (`model.layers.0.self_attn.q_proj.weight`).

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;
use tch::{Kind, Tensor};

use super::gguf::GgufFile;
use super::safetensors_file::SafetensorsFile;
use super::{Family, LmError, Placement};

/// A checkpoint opened for reading. Nothing is copied until a tensor is asked for.
pub struct Weights {
    path: PathBuf,
    source: Source,
}

enum Source {
    Safetensors {
        files: Vec<SafetensorsFile>,
        file_of: BTreeMap<String, usize>,
    },
    Gguf {
        file: GgufFile,
        permuted: Option<PermutedHeads>,
    },
    Random,
}

/// The standard deviation of random weights, that of freshly initialised models.
const RANDOM_DEVIATION: f64 = 0.02;

/// Llama GGUFs store each query and key head with its two rotary halves interleaved.
struct PermutedHeads {
    heads: i64,
    kv_heads: i64,
}

/// The weight of a linear layer as the checkpoint stores it.
pub enum LinearWeight {
    /// [out, in].
    Dense(Tensor),
    Nf4(Nf4Parts),
}

/// A weight quantised by bitsandbytes to NF4, undecoded and on the CPU (Dettmers et al. 2023, arXiv:2305.14314).
pub struct Nf4Parts {
    /// u8 [out · in / 2, 1]; element 2i of the flattened weight is in the high nibble.
    pub packed: Tensor,
    /// One scale per block: f32, or u8 codes where the scales are quantised again (`nested`).
    pub absmax: Tensor,
    /// f32 [16].
    pub quant_map: Tensor,
    /// `(absmax f32, quant_map f32 [256])` of the quantised scales.
    pub nested: Option<(Tensor, Tensor)>,
    /// The JSON of `quant_state`: `blocksize`, `dtype`, `shape`, `nested_blocksize`, `nested_offset`.
    pub state: Value,
}

const NF4_STATE: &str = "quant_state.bitsandbytes__nf4";

impl Weights {
    /// Opens a model folder.
    ///
    /// # Errors
    /// [`LmError::Missing`] where the folder holds no weights, [`LmError::Corrupt`] for damaged files.
    pub fn open(path: &Path) -> Result<Self, LmError> {
        let files = shards(path)?
            .iter()
            .map(|file| SafetensorsFile::open(file))
            .collect::<Result<Vec<_>, _>>()?;
        let mut file_of = BTreeMap::new();
        for (index, file) in files.iter().enumerate() {
            file_of.extend(file.names().map(|name| (name, index)));
        }
        Ok(Self {
            path: path.to_owned(),
            source: Source::Safetensors { files, file_of },
        })
    }

    /// Takes the tensors of an opened GGUF, renamed to the names of Hugging Face checkpoints.
    pub(super) fn from_gguf(file: GgufFile, family: Family, heads: i64, kv_heads: i64) -> Self {
        let permuted = (family == Family::Llama).then_some(PermutedHeads { heads, kv_heads });
        Self {
            path: file.path().to_owned(),
            source: Source::Gguf { file, permuted },
        }
    }

    /// A checkpoint that has every tensor of every shape: matrices of normal numbers, vectors of ones.
    pub(super) fn random() -> Self {
        Self {
            path: PathBuf::from("random"),
            source: Source::Random,
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn contains(&self, name: &str) -> bool {
        match &self.source {
            Source::Safetensors { file_of, .. } => file_of.contains_key(name),
            Source::Gguf { file, .. } => {
                gguf_name(name).is_some_and(|name| file.shape(&name).is_some())
            }
            Source::Random => false,
        }
    }

    /// A dense tensor of exactly `shape`, converted and moved to `placement`, without gradient.
    pub fn tensor(
        &self,
        name: &str,
        shape: &[i64],
        placement: Placement,
    ) -> Result<Tensor, LmError> {
        if matches!(self.source, Source::Random) {
            let options = (placement.kind, placement.device);
            return match shape.len() {
                1 => Ok(Tensor::f_ones(shape, options)?),
                _ => Ok(Tensor::f_empty(shape, options)?.f_normal_(0.0, RANDOM_DEVIATION)?),
            };
        }
        let tensor = self.stored(name)?;
        if tensor.size() != shape {
            return Err(LmError::Shape {
                path: self.path.clone(),
                name: name.to_owned(),
                expected: shape.to_vec(),
                found: tensor.size(),
            });
        }
        if !matches!(
            tensor.kind(),
            Kind::Float | Kind::BFloat16 | Kind::Half | Kind::Double
        ) {
            let what = format!("{:?} weights (tensor `{name}`)", tensor.kind());
            return Err(LmError::unsupported(&self.path, what));
        }
        // Narrow before moving: fewer bytes cross the bus.
        Ok(tensor
            .f_to_kind(placement.kind)?
            .f_to_device(placement.device)?)
    }

    /// The weight `[out, in]` of the linear layer `{prefix}.weight`, dense or undecoded NF4.
    pub fn linear(
        &self,
        prefix: &str,
        shape: [i64; 2],
        placement: Placement,
    ) -> Result<LinearWeight, LmError> {
        let name = format!("{prefix}.weight");
        if self.contains(&format!("{name}.{NF4_STATE}")) {
            return self.nf4(&name).map(LinearWeight::Nf4);
        }
        self.tensor(&name, &shape, placement)
            .map(LinearWeight::Dense)
    }

    fn nf4(&self, name: &str) -> Result<Nf4Parts, LmError> {
        let state_name = format!("{name}.{NF4_STATE}");
        let bytes = Vec::<u8>::try_from(self.stored(&state_name)?)?;
        let state = serde_json::from_slice(&bytes).map_err(|error| {
            LmError::corrupt(
                &self.path,
                "safetensors",
                format!("`{state_name}`: {error}"),
            )
        })?;
        let nested = match self.contains(&format!("{name}.nested_absmax")) {
            false => None,
            true => Some((
                self.stored(&format!("{name}.nested_absmax"))?,
                self.stored(&format!("{name}.nested_quant_map"))?,
            )),
        };
        Ok(Nf4Parts {
            packed: self.stored(name)?,
            absmax: self.stored(&format!("{name}.absmax"))?,
            quant_map: self.stored(&format!("{name}.quant_map"))?,
            nested,
            state,
        })
    }

    /// A tensor as stored, on the CPU, in the layout of Hugging Face checkpoints.
    fn stored(&self, name: &str) -> Result<Tensor, LmError> {
        let missing = || LmError::missing(&self.path, format!("tensor {name}"));
        match &self.source {
            Source::Safetensors { files, file_of } => {
                files[*file_of.get(name).ok_or_else(missing)?].tensor(name)
            }
            Source::Gguf { file, permuted } => {
                let tensor = file.tensor(&gguf_name(name).ok_or_else(missing)?)?;
                match permuted {
                    Some(heads) => heads.restore(name, tensor),
                    None => Ok(tensor),
                }
            }
            Source::Random => Err(missing()),
        }
    }
}

impl PermutedHeads {
    /// Undoes the permutation of query and key weights [heads · D, in]; other tensors pass.
    fn restore(&self, name: &str, tensor: Tensor) -> Result<Tensor, LmError> {
        let heads = match name {
            _ if name.ends_with("self_attn.q_proj.weight") => self.heads,
            _ if name.ends_with("self_attn.k_proj.weight") => self.kv_heads,
            _ => return Ok(tensor),
        };
        let shape = tensor.size();
        let pairs = shape[0] / heads / 2;
        let split = tensor.f_reshape([heads, pairs, 2, shape[1]])?;
        Ok(split.f_transpose(1, 2)?.f_reshape(&shape)?)
    }
}

/// The GGUF name of a Hugging Face tensor name.
pub(super) fn gguf_name(name: &str) -> Option<String> {
    let name = name.strip_suffix(".weight")?;
    let Some(rest) = name.strip_prefix("model.layers.") else {
        let name = match name {
            "model.embed_tokens" => "token_embd",
            "model.norm" => "output_norm",
            "lm_head" => "output",
            _ => return None,
        };
        return Some(format!("{name}.weight"));
    };
    let (layer, part) = rest.split_once('.')?;
    let part = match part {
        "input_layernorm" => "attn_norm",
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.o_proj" => "attn_output",
        "self_attn.q_norm" => "attn_q_norm",
        "self_attn.k_norm" => "attn_k_norm",
        "post_attention_layernorm" => "ffn_norm",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        _ => return None,
    };
    Some(format!("blk.{layer}.{part}.weight"))
}

/// The weight files of a model folder: those its index names, else `model.safetensors`.
fn shards(folder: &Path) -> Result<Vec<PathBuf>, LmError> {
    let index_path = folder.join("model.safetensors.index.json");
    if !index_path.exists() {
        let single = folder.join("model.safetensors");
        return match single.exists() {
            true => Ok(vec![single]),
            false => Err(LmError::missing(folder, "model.safetensors")),
        };
    }
    let bytes = std::fs::read(&index_path).map_err(|error| LmError::read(&index_path, error))?;
    let corrupt = |reason: String| LmError::corrupt(&index_path, "safetensors index", reason);
    let index: Value =
        serde_json::from_slice(&bytes).map_err(|error| corrupt(error.to_string()))?;
    let map = index["weight_map"]
        .as_object()
        .ok_or_else(|| corrupt("no `weight_map`".into()))?;
    let mut names = BTreeSet::new();
    for value in map.values() {
        // A shard lies beside its index: anything else in a downloaded file is a mistake or an attack.
        let name = value
            .as_str()
            .filter(|name| Path::new(name).file_name() == Some(name.as_ref()));
        names.insert(name.ok_or_else(|| corrupt(format!("{value} is not a file name")))?);
    }
    Ok(names.into_iter().map(|name| folder.join(name)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(folder: &Path) -> String {
        Weights::open(folder)
            .err()
            .unwrap()
            .to_string()
            .replace(&folder.display().to_string(), "M")
    }

    #[test]
    fn damaged_folders_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        insta::assert_snapshot!(error(folder.path()), @"`M` has no `model.safetensors`");

        std::fs::write(at("model.safetensors"), b"\x10\0\0\0\0\0\0\0{}").unwrap();
        insta::assert_snapshot!(error(folder.path()), @"`M/model.safetensors` is not a usable safetensors file: invalid header length");

        let index = at("model.safetensors.index.json");
        std::fs::write(&index, br#"{"weight_map": {"a": "../a.safetensors"}}"#).unwrap();
        insta::assert_snapshot!(error(folder.path()), @r#"`M/model.safetensors.index.json` is not a usable safetensors index file: "../a.safetensors" is not a file name"#);
        std::fs::write(&index, b"\xff\xfe").unwrap();
        insta::assert_snapshot!(error(folder.path()), @"`M/model.safetensors.index.json` is not a usable safetensors index file: expected value at line 1 column 1");
    }

    #[test]
    fn names_map_to_gguf() {
        assert_eq!(
            gguf_name("model.embed_tokens.weight").unwrap(),
            "token_embd.weight"
        );
        assert_eq!(
            gguf_name("model.layers.12.self_attn.o_proj.weight").unwrap(),
            "blk.12.attn_output.weight"
        );
        assert_eq!(gguf_name("model.layers.12.self_attn.o_proj.bias"), None);
    }
}
