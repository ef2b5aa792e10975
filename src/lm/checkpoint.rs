//! The state of a training run on disk, in one safetensors file that is replaced as a whole.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::LmError;
use super::curve::{CurveRow, curve_rows, curve_tensor};
use super::safetensors_file::SafetensorsFile;
use super::tensor_file::write_tensors;

const FILE: &str = "checkpoint.safetensors";
const VERSION: u32 = 1;

/// Where a run stands after `curve.len()` steps. Seeds and the order of the data follow from the configuration.
pub(super) struct Checkpoint {
    /// f32, the flat parameters.
    pub values: Tensor,
    /// The flat parameters of the best evaluation so far.
    pub best: Option<Tensor>,
    pub optimizer: Vec<(String, Tensor)>,
    pub curve: Vec<CurveRow>,
    /// The most tokens of one forward pass, which shrinks where memory runs out.
    pub max_tokens: u64,
}

#[derive(Deserialize, Serialize)]
struct Header {
    version: u32,
    /// Hash of everything the run is a function of.
    run: String,
    max_tokens: u64,
}

impl Checkpoint {
    /// Replaces the checkpoint in `folder`. A crash leaves the old one or the new one.
    pub(super) fn save(&self, folder: &Path, run: &str) -> Result<(), LmError> {
        std::fs::create_dir_all(folder).map_err(|error| LmError::write(folder, error))?;
        let mut tensors = vec![
            ("values".to_owned(), self.values.shallow_clone()),
            ("curve".to_owned(), curve_tensor(&self.curve)),
        ];
        if let Some(best) = &self.best {
            tensors.push(("best".to_owned(), best.shallow_clone()));
        }
        for (name, tensor) in &self.optimizer {
            tensors.push((format!("optimizer.{name}"), tensor.shallow_clone()));
        }
        let header = Header {
            version: VERSION,
            run: run.to_owned(),
            max_tokens: self.max_tokens,
        };
        let header = serde_json::json!(header).to_string();
        let metadata = HashMap::from([("checkpoint".to_owned(), header)]);
        write_tensors(&folder.join(FILE), &tensors, metadata)
    }

    /// The checkpoint in `folder`, if there is one.
    ///
    /// # Errors
    /// [`LmError::Checkpoint`] when it belongs to another run.
    pub(super) fn load(folder: &Path, run: &str) -> Result<Option<Self>, LmError> {
        let path = folder.join(FILE);
        if !path.exists() {
            return Ok(None);
        }
        let file = SafetensorsFile::open(&path)?;
        let header: Header = file
            .metadata("checkpoint")
            .and_then(|text| serde_json::from_str(text).ok())
            .ok_or_else(|| foreign(&path, "it has no header of a training run"))?;
        if header.version != VERSION {
            return Err(foreign(&path, "it was written by another version of flow"));
        }
        if header.run != run {
            return Err(foreign(
                &path,
                "it belongs to a run with other data or settings",
            ));
        }
        let mut optimizer = Vec::new();
        for name in file.names() {
            if let Some(state) = name.strip_prefix("optimizer.") {
                optimizer.push((state.to_owned(), file.tensor(&name)?));
            }
        }
        let best = match file.names().any(|name| name == "best") {
            true => Some(file.tensor("best")?),
            false => None,
        };
        Ok(Some(Self {
            values: file.tensor("values")?,
            best,
            optimizer,
            curve: curve_rows(&file.tensor("curve")?),
            max_tokens: header.max_tokens,
        }))
    }
}

fn foreign(path: &Path, reason: &str) -> LmError {
    LmError::Checkpoint {
        path: PathBuf::from(path),
        reason: reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint() -> Checkpoint {
        Checkpoint {
            values: Tensor::from_slice(&[0.1_f32, 0.2]),
            best: None,
            optimizer: vec![("first".to_owned(), Tensor::from_slice(&[1_u8, 2]))],
            curve: vec![CurveRow {
                step: 1,
                epoch: 1.0 / 3.0,
                loss: 0.1 + 0.2,
                learning_rate: 1e-5,
                grad_norm: 2.5,
                tokens: 7,
                eval_loss: None,
            }],
            max_tokens: 4096,
        }
    }

    #[test]
    fn comes_back_bit_for_bit() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Checkpoint::load(folder.path(), "run").unwrap().is_none());
        let mut saved = checkpoint();
        saved.save(folder.path(), "run").unwrap();
        saved.curve[0].eval_loss = Some(1.0 / 7.0);
        saved.best = Some(Tensor::from_slice(&[0.3_f32, 0.4]));
        saved.save(folder.path(), "run").unwrap();
        let found = Checkpoint::load(folder.path(), "run").unwrap().unwrap();
        assert_eq!(found.values, saved.values);
        assert_eq!(found.best, saved.best);
        assert_eq!(found.optimizer, saved.optimizer);
        assert_eq!(found.curve, saved.curve);
        assert_eq!(found.max_tokens, saved.max_tokens);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn of_another_run_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        checkpoint().save(folder.path(), "one").unwrap();
        let error = Checkpoint::load(folder.path(), "other").err().unwrap();
        assert!(
            error.to_string().contains("other data or settings"),
            "{error}"
        );
    }
}
