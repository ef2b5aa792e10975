//! One source of named tensors, whatever the checkpoint: a folder of safetensors shards or a GGUF file.
//! Names are those of Hugging Face checkpoints (`model.layers.0.self_attn.q_proj.weight`).

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;
use tch::{Device, Kind, Tensor};

use super::safetensors_file::SafetensorsFile;
use super::{LmError, Placement};

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

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn contains(&self, name: &str) -> bool {
        match &self.source {
            Source::Safetensors { file_of, .. } => file_of.contains_key(name),
        }
    }

    /// A dense tensor of exactly `shape`, converted and moved to `placement`, without gradient.
    pub fn tensor(
        &self,
        name: &str,
        shape: &[i64],
        placement: Placement,
    ) -> Result<Tensor, LmError> {
        let Source::Safetensors { .. } = &self.source;
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
        let state = serde_json::from_slice(self.file(&state_name)?.bytes(&state_name)?).map_err(
            |error| {
                LmError::corrupt(
                    &self.path,
                    "safetensors",
                    format!("`{state_name}`: {error}"),
                )
            },
        )?;
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

    /// A tensor as stored, on the CPU.
    fn stored(&self, name: &str) -> Result<Tensor, LmError> {
        self.file(name)?.tensor(name)
    }

    fn file(&self, name: &str) -> Result<&SafetensorsFile, LmError> {
        let Source::Safetensors { files, file_of } = &self.source;
        let index = file_of
            .get(name)
            .ok_or_else(|| LmError::missing(&self.path, format!("tensor {name}")))?;
        Ok(&files[*index])
    }
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
