//! One memory-mapped `.safetensors` file (format: <https://github.com/huggingface/safetensors>).

use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use tch::{Kind, Tensor};

use super::LmError;

pub(super) struct SafetensorsFile {
    path: PathBuf,
    bytes: Mmap,
    metadata: Metadata,
    data_start: usize,
}

impl SafetensorsFile {
    /// Maps the file and checks its header against its length.
    pub(super) fn open(path: &Path) -> Result<Self, LmError> {
        let bytes = map(path)?;
        let (header, metadata) = SafeTensors::read_metadata(&bytes)
            .map_err(|error| LmError::corrupt(path, "safetensors", error))?;
        Ok(Self {
            path: path.to_owned(),
            data_start: header + 8,
            metadata,
            bytes,
        })
    }

    pub(super) fn names(&self) -> impl Iterator<Item = String> {
        self.metadata.tensors().into_keys()
    }

    /// A text of the file's `__metadata__`.
    pub(super) fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata
            .metadata()
            .as_ref()?
            .get(key)
            .map(String::as_str)
    }

    /// The tensor on the CPU in its stored kind, copied out of the mapping.
    pub(super) fn tensor(&self, name: &str) -> Result<Tensor, LmError> {
        let (info, bytes) = self.view(name)?;
        let kind = match info.dtype {
            Dtype::BF16 => Kind::BFloat16,
            Dtype::F16 => Kind::Half,
            Dtype::F32 => Kind::Float,
            Dtype::F64 => Kind::Double,
            Dtype::I64 => Kind::Int64,
            Dtype::I32 => Kind::Int,
            Dtype::I8 => Kind::Int8,
            Dtype::U8 => Kind::Uint8,
            other => {
                return Err(LmError::unsupported(
                    &self.path,
                    format!("dtype {other:?} (tensor `{name}`)"),
                ));
            }
        };
        let shape: Vec<i64> = info.shape.iter().map(|&size| size as i64).collect();
        Ok(Tensor::f_from_data_size(bytes, &shape, kind)?)
    }

    fn view(&self, name: &str) -> Result<(&TensorInfo, &[u8]), LmError> {
        let missing = || LmError::missing(&self.path, format!("tensor {name}"));
        let info = self.metadata.info(name).ok_or_else(missing)?;
        let (start, end) = info.data_offsets;
        let bytes = self
            .bytes
            .get(self.data_start + start..self.data_start + end)
            .ok_or_else(missing)?;
        Ok((info, bytes))
    }
}

/// Maps a whole file for reading.
pub(super) fn map(path: &Path) -> Result<Mmap, LmError> {
    let file = std::fs::File::open(path).map_err(|error| LmError::read(path, error))?;
    #[expect(
        unsafe_code,
        reason = "model files are not rewritten in place while a process reads them"
    )]
    let bytes = unsafe { Mmap::map(&file) }.map_err(|error| LmError::read(path, error))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survives_damage() {
        let header = br#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"b":{"dtype":"BF16","shape":[4],"data_offsets":[24,32]}}"#;
        let mut seed = (header.len() as u64).to_le_bytes().to_vec();
        seed.extend(header);
        seed.extend([0; 32]);
        crate::fuzz::survives(&[seed], |bytes| {
            let kept = crate::fuzz::file(bytes);
            if let Ok(file) = SafetensorsFile::open(kept.path()) {
                for name in file.names().collect::<Vec<_>>() {
                    let _ = file.tensor(&name);
                }
            }
        });
    }
}
