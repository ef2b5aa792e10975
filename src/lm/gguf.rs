//! The GGUF container: metadata, and tensors by name (specification: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>).
//! Every length and offset of the file is checked before it is believed, so a damaged file is an error and never a crash.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use tch::Tensor;

use super::LmError;
use super::ggml::{self, BlockFormat};
use super::safetensors_file::map;

pub(super) struct GgufFile {
    path: PathBuf,
    bytes: Mmap,
    metadata: BTreeMap<String, MetaValue>,
    tensors: BTreeMap<String, TensorEntry>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum MetaValue {
    Integer(i64),
    Float(f64),
    Bool(bool),
    Text(String),
    Array(Vec<MetaValue>),
}

struct TensorEntry {
    /// Outermost dimension first, the reverse of the file's order.
    shape: Vec<usize>,
    type_id: u32,
    /// From the start of the file.
    offset: usize,
}

impl GgufFile {
    pub(super) fn open(path: &Path) -> Result<Self, LmError> {
        let bytes = map(path)?;
        let (metadata, tensors) =
            parse(&bytes).map_err(|reason| LmError::corrupt(path, "GGUF", reason))?;
        Ok(Self {
            path: path.to_owned(),
            bytes,
            metadata,
            tensors,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|entry| &entry.shape[..])
    }

    /// The tensor on the CPU: as stored if it is f32, f16 or bf16, else decoded to f32.
    pub(super) fn tensor(&self, name: &str) -> Result<Tensor, LmError> {
        let entry = self
            .tensors
            .get(name)
            .ok_or_else(|| LmError::missing(&self.path, format!("tensor {name}")))?;
        let format = BlockFormat::from_id(entry.type_id).ok_or_else(|| {
            let what = format!("GGML tensor type {} (tensor `{name}`)", entry.type_id);
            LmError::unsupported(&self.path, what)
        })?;
        let elements = entry.shape.iter().product::<usize>();
        let size = elements / format.elements() * format.bytes();
        // `parse` has checked these bounds.
        let bytes = &self.bytes[entry.offset..entry.offset + size];
        let shape: Vec<i64> = entry.shape.iter().map(|&size| size as i64).collect();
        Ok(match format.plain_kind() {
            Some(kind) => Tensor::f_from_data_size(bytes, &shape, kind)?,
            None => Tensor::f_from_slice(&ggml::dequantise(format, bytes))?.f_reshape(&shape)?,
        })
    }

    pub(super) fn text(&self, key: &str) -> Option<&str> {
        match self.metadata.get(key)? {
            MetaValue::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn integer(&self, key: &str) -> Option<i64> {
        match self.metadata.get(key)? {
            MetaValue::Integer(value) => Some(*value),
            _ => None,
        }
    }

    pub(super) fn float(&self, key: &str) -> Option<f64> {
        match self.metadata.get(key)? {
            MetaValue::Float(value) => Some(*value),
            _ => None,
        }
    }

    /// An array whose elements are all text.
    pub(super) fn texts(&self, key: &str) -> Option<Vec<&str>> {
        let MetaValue::Array(values) = self.metadata.get(key)? else {
            return None;
        };
        values
            .iter()
            .map(|value| match value {
                MetaValue::Text(text) => Some(text.as_str()),
                _ => None,
            })
            .collect()
    }

    /// An array whose elements are all integers.
    pub(super) fn integers(&self, key: &str) -> Option<Vec<i64>> {
        let MetaValue::Array(values) = self.metadata.get(key)? else {
            return None;
        };
        values
            .iter()
            .map(|value| match value {
                MetaValue::Integer(value) => Some(*value),
                _ => None,
            })
            .collect()
    }
}

type Parsed = (BTreeMap<String, MetaValue>, BTreeMap<String, TensorEntry>);

fn parse(bytes: &[u8]) -> Result<Parsed, String> {
    let mut reader = Reader { bytes, at: 0 };
    if reader.take(4)? != b"GGUF" {
        return Err("it does not begin with `GGUF`".into());
    }
    let version = reader.u32()?;
    if !(2..=3).contains(&version) {
        return Err(format!("version {version} is neither 2 nor 3"));
    }
    let tensor_count = reader.u64()?;
    let pair_count = reader.u64()?;

    let mut metadata = BTreeMap::new();
    for _ in 0..pair_count {
        let key = reader.text()?;
        let type_id = reader.u32()?;
        let value = reader
            .value(type_id, 0)
            .map_err(|error| format!("`{key}`: {error}"))?;
        metadata.insert(key, value);
    }
    let alignment = match metadata.get("general.alignment") {
        None => 32,
        Some(MetaValue::Integer(value)) if (1..=1 << 20).contains(value) => *value as usize,
        Some(other) => return Err(format!("alignment {other:?}")),
    };

    let mut tensors = BTreeMap::new();
    for _ in 0..tensor_count {
        let name = reader.text()?;
        let entry = reader
            .tensor_entry()
            .map_err(|error| format!("tensor `{name}`: {error}"))?;
        if tensors.contains_key(&name) {
            return Err(format!("tensor `{name}` is listed twice"));
        }
        tensors.insert(name, entry);
    }

    let data_start = reader
        .at
        .checked_next_multiple_of(alignment)
        .ok_or("too long")?;
    for (name, entry) in &mut tensors {
        let size = entry
            .byte_size()
            .ok_or_else(|| format!("tensor `{name}` has an odd shape"))?;
        let start = data_start.checked_add(entry.offset);
        let end = start.and_then(|start| start.checked_add(size));
        match (start, end) {
            (Some(start), Some(end)) if end <= bytes.len() => entry.offset = start,
            _ => {
                let length = bytes.len();
                return Err(format!(
                    "tensor `{name}` ends behind the file's {length} bytes"
                ));
            }
        }
    }
    Ok((metadata, tensors))
}

impl TensorEntry {
    /// None where rows do not divide into blocks or the product overflows. A type that is not known counts as empty:
    /// reading such a tensor is refused by name.
    fn byte_size(&self) -> Option<usize> {
        let elements = self
            .shape
            .iter()
            .try_fold(1_usize, |total, &size| total.checked_mul(size))?;
        let Some(format) = BlockFormat::from_id(self.type_id) else {
            return Some(0);
        };
        match self.shape.last().copied().unwrap_or(1) % format.elements() {
            0 => (elements / format.elements()).checked_mul(format.bytes()),
            _ => None,
        }
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let end = self.at.checked_add(count);
        let taken = end.and_then(|end| self.bytes.get(self.at..end));
        let taken = taken.ok_or_else(|| format!("it ends after {} bytes", self.bytes.len()))?;
        self.at += count;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn u32(&mut self) -> Result<u32, String> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, String> {
        self.array().map(u64::from_le_bytes)
    }

    fn size(&mut self) -> Result<usize, String> {
        usize::try_from(self.u64()?).map_err(|error| error.to_string())
    }

    fn text(&mut self) -> Result<String, String> {
        let length = self.size()?;
        let bytes = self.take(length)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| "a string is not UTF-8".into())
    }

    fn value(&mut self, type_id: u32, depth: u32) -> Result<MetaValue, String> {
        use MetaValue::{Array, Bool, Float, Integer, Text};
        Ok(match type_id {
            0 => Integer(self.array().map(u8::from_le_bytes)?.into()),
            1 => Integer(self.array().map(i8::from_le_bytes)?.into()),
            2 => Integer(self.array().map(u16::from_le_bytes)?.into()),
            3 => Integer(self.array().map(i16::from_le_bytes)?.into()),
            4 => Integer(self.u32()?.into()),
            5 => Integer(self.array().map(i32::from_le_bytes)?.into()),
            6 => Float(self.array().map(f32::from_le_bytes)?.into()),
            7 => Bool(self.take(1)?[0] != 0),
            8 => Text(self.text()?),
            9 if depth < 4 => {
                let element = self.u32()?;
                let length = self.u64()?;
                // Grows with what is really there: a false length ends at the end of the file.
                let mut values = Vec::new();
                for _ in 0..length {
                    values.push(self.value(element, depth + 1)?);
                }
                Array(values)
            }
            10 => Integer(i64::try_from(self.u64()?).map_err(|error| error.to_string())?),
            11 => Integer(self.array().map(i64::from_le_bytes)?),
            12 => Float(self.array().map(f64::from_le_bytes)?),
            other => return Err(format!("value type {other} at depth {depth}")),
        })
    }

    fn tensor_entry(&mut self) -> Result<TensorEntry, String> {
        let dimensions = self.u32()?;
        if !(1..=4).contains(&dimensions) {
            return Err(format!("{dimensions} dimensions"));
        }
        let mut shape = (0..dimensions)
            .map(|_| self.size())
            .collect::<Result<Vec<_>, _>>()?;
        shape.reverse();
        if shape.iter().any(|&size| size == 0 || size > 1 << 40) {
            return Err(format!("shape {shape:?}"));
        }
        Ok(TensorEntry {
            shape,
            type_id: self.u32()?,
            offset: self.size()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;
    use crate::lm::{ModelConfig, Tokenizer};

    fn text(bytes: &mut Vec<u8>, text: &str) {
        bytes.extend((text.len() as u64).to_le_bytes());
        bytes.extend(text.as_bytes());
    }

    /// A small intact file: three metadata values, and tensor `t` of f32 [2, 3] with the values 0 to 5.
    fn intact() -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(3_u32.to_le_bytes());
        bytes.extend(1_u64.to_le_bytes());
        bytes.extend(3_u64.to_le_bytes());
        text(&mut bytes, "general.architecture");
        bytes.extend(8_u32.to_le_bytes());
        text(&mut bytes, "llama");
        text(&mut bytes, "count");
        bytes.extend(4_u32.to_le_bytes());
        bytes.extend(7_u32.to_le_bytes());
        text(&mut bytes, "list");
        bytes.extend(9_u32.to_le_bytes());
        bytes.extend(8_u32.to_le_bytes());
        bytes.extend(2_u64.to_le_bytes());
        text(&mut bytes, "a");
        text(&mut bytes, "b");
        text(&mut bytes, "t");
        bytes.extend(2_u32.to_le_bytes());
        bytes.extend(3_u64.to_le_bytes());
        bytes.extend(2_u64.to_le_bytes());
        bytes.extend(0_u32.to_le_bytes());
        bytes.extend(0_u64.to_le_bytes());
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        bytes.extend((0_u8..6).flat_map(|value| f32::from(value).to_le_bytes()));
        bytes
    }

    fn open(bytes: &[u8]) -> Result<GgufFile, LmError> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        GgufFile::open(file.path())
    }

    #[test]
    fn reads_values_and_tensors() {
        let file = open(&intact()).unwrap();
        assert_eq!(file.text("general.architecture"), Some("llama"));
        assert_eq!(file.integer("count"), Some(7));
        assert_eq!(file.texts("list"), Some(vec!["a", "b"]));
        assert_eq!(file.shape("t"), Some(&[2, 3][..]));
        let tensor = file.tensor("t").unwrap();
        assert_eq!(tensor.size(), [2, 3]);
        assert_eq!(tensor.double_value(&[1, 0]), 3.0);
        assert!(file.tensor("u").is_err());
    }

    #[test]
    fn every_truncation_is_an_error() {
        let bytes = intact();
        for length in 0..bytes.len() {
            assert!(
                parse(&bytes[..length]).is_err(),
                "{length} bytes were accepted"
            );
        }
    }

    #[test]
    fn names_the_cause() {
        let mut bytes = intact();
        bytes[4] = 9;
        assert_eq!(parse(&bytes).err().unwrap(), "version 9 is neither 2 nor 3");
        assert_eq!(
            parse(b"PK\x03\x04").err().unwrap(),
            "it does not begin with `GGUF`"
        );
        let bytes = intact();
        let error = parse(&bytes[..bytes.len() - 1]).err().unwrap();
        assert!(
            error.starts_with("tensor `t` ends behind the file's"),
            "{error}"
        );
    }

    proptest! {
        #[test]
        fn damage_never_panics(at in 0..intact().len(), value: u8, more in 0..intact().len(), other: u8) {
            let mut bytes = intact();
            bytes[at] = value;
            bytes[more] = other;
            if let Ok((_, tensors)) = parse(&bytes) {
                for entry in tensors.values() {
                    prop_assert!(entry.offset + entry.byte_size().unwrap() <= bytes.len());
                }
            }
        }
    }

    #[test]
    fn survives_damage() {
        crate::fuzz::survives(&[intact()], |bytes| {
            let kept = crate::fuzz::file(bytes);
            if let Ok(file) = GgufFile::open(kept.path()) {
                for name in ["t", "u"] {
                    let _ = file.tensor(name);
                }
                let _ = ModelConfig::from_gguf(&file);
                let _ = Tokenizer::from_gguf(&file);
            }
        });
    }
}
