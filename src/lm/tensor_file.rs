//! Writing safetensors files so that a crash at any moment leaves the old file or the new one, never a part.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::Write;
use std::path::Path;

use safetensors::tensor::{Dtype, View};
use tch::{Device, Kind, Tensor};

use super::LmError;

/// Writes named tensors and the text `metadata` of a safetensors file.
pub(super) fn write_tensors(
    path: &Path,
    tensors: &[(String, Tensor)],
    metadata: HashMap<String, String>,
) -> Result<(), LmError> {
    let views = tensors
        .iter()
        .map(|(name, tensor)| Ok((name.as_str(), HostTensor::new(tensor)?)))
        .collect::<Result<Vec<_>, LmError>>()?;
    let bytes = safetensors::serialize(views, Some(metadata))
        .map_err(|error| LmError::write(path, std::io::Error::other(error)))?;
    write_atomically(path, &bytes)
}

/// Writes beside the target, makes it durable, then renames it over the target.
pub(super) fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), LmError> {
    let write = || {
        let folder = path.parent().unwrap_or(Path::new("."));
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        std::fs::File::open(folder)?.sync_all()
    };
    write().map_err(|error| LmError::write(path, error))
}

/// The bytes of a tensor on the CPU.
struct HostTensor {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl HostTensor {
    fn new(tensor: &Tensor) -> Result<Self, LmError> {
        let tensor = tensor.f_to_device(Device::Cpu)?.f_contiguous()?;
        let dtype = match tensor.kind() {
            Kind::Uint8 => Dtype::U8,
            Kind::BFloat16 => Dtype::BF16,
            Kind::Half => Dtype::F16,
            Kind::Double => Dtype::F64,
            Kind::Int64 => Dtype::I64,
            _ => Dtype::F32,
        };
        let mut bytes = vec![0; tensor.numel() * tensor.kind().elt_size_in_bytes()];
        tensor.f_copy_data_u8(&mut bytes, tensor.numel())?;
        Ok(Self {
            dtype,
            shape: tensor.size().iter().map(|&size| size as usize).collect(),
            bytes,
        })
    }
}

impl View for HostTensor {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}
