//! A base model with an adapter added into its weights, tensor by tensor: W + scale · B · A in f32, from the weights as the
//! checkpoint stores them and never from ones that were rounded for training.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tch::{Device, Kind, Tensor};

use super::model::ModelFiles;
use super::safetensors_file::SafetensorsFile;
use super::weights::LinearWeight;
use super::{LmError, LoraConfig, ModelConfig, Nf4, Placement, Tokenizer, read_adapter};

const CPU: Placement = Placement {
    device: Device::Cpu,
    kind: Kind::Float,
};

/// Opened files of a base and its adapter. A weight is computed when it is asked for.
pub struct Merged {
    files: ModelFiles,
    base: PathBuf,
    lora: LoraConfig,
    /// By their names in PEFT's files, f32.
    adapter: BTreeMap<String, Tensor>,
    template: Option<String>,
}

impl Merged {
    /// # Errors
    /// An adapter that was trained with another chat template or belongs to another model.
    pub fn open(base: &Path, adapter: &Path) -> Result<Self, LmError> {
        let files = ModelFiles::open(base)?;
        let saved = read_adapter(adapter)?;
        if let Some(template) = &files.template {
            super::check_template(adapter, &saved, template)?;
        }
        let path = adapter.join("adapter_model.safetensors");
        let file = SafetensorsFile::open(&path)?;
        let mut tensors = BTreeMap::new();
        for name in file.names() {
            tensors.insert(name.clone(), file.tensor(&name)?.f_to_kind(Kind::Float)?);
        }
        let merged = Self {
            template: files.template.clone().or(saved.template),
            files,
            base: base.to_owned(),
            lora: saved.lora,
            adapter: tensors,
        };
        merged.check_names(&path)?;
        Ok(merged)
    }

    /// Every tensor of the adapter must belong to a weight of the base, or its effect would be lost unseen.
    fn check_names(&self, path: &Path) -> Result<(), LmError> {
        let weights: Vec<String> = self.tensors().into_iter().map(|(name, _)| name).collect();
        for name in self.adapter.keys() {
            let known = weights.iter().any(|weight| {
                let prefix = adapter_prefix(weight);
                name.strip_prefix(&prefix).is_some_and(|rest| {
                    ["lora_A.weight", "lora_B.weight", "lora_magnitude_vector"].contains(&rest)
                })
            });
            if !known {
                let reason = format!("the base has no weight for `{name}`");
                return Err(LmError::adapter(path, reason));
            }
        }
        Ok(())
    }

    pub fn config(&self) -> &ModelConfig {
        &self.files.config
    }

    pub fn tokenizer(&self) -> &Tokenizer {
        &self.files.tokenizer
    }

    pub fn template(&self) -> Option<&str> {
        self.template.as_deref()
    }

    /// The file or folder of the base.
    pub fn base(&self) -> &Path {
        &self.base
    }

    /// Names of Hugging Face checkpoints, and shapes, in the order of the computation.
    pub fn tensors(&self) -> Vec<(String, Vec<i64>)> {
        let config = &self.files.config;
        let (hidden, inner) = (config.hidden, config.intermediate);
        let mut tensors = vec![(
            "model.embed_tokens.weight".to_owned(),
            vec![config.vocab, hidden],
        )];
        for layer in 0..config.layers {
            let mut add = |name: &str, shape: &[i64]| {
                tensors.push((
                    format!("model.layers.{layer}.{name}.weight"),
                    shape.to_vec(),
                ));
            };
            add("input_layernorm", &[hidden]);
            add("self_attn.q_proj", &[config.q_dim(), hidden]);
            add("self_attn.k_proj", &[config.kv_dim(), hidden]);
            add("self_attn.v_proj", &[config.kv_dim(), hidden]);
            if config.family.has_head_norm() {
                add("self_attn.q_norm", &[config.head_dim]);
                add("self_attn.k_norm", &[config.head_dim]);
            }
            add("self_attn.o_proj", &[hidden, config.q_dim()]);
            add("post_attention_layernorm", &[hidden]);
            add("mlp.gate_proj", &[inner, hidden]);
            add("mlp.up_proj", &[inner, hidden]);
            add("mlp.down_proj", &[hidden, inner]);
        }
        tensors.push(("model.norm.weight".to_owned(), vec![hidden]));
        if !config.tied {
            tensors.push(("lm_head.weight".to_owned(), vec![config.vocab, hidden]));
        }
        tensors
    }

    /// One of [`Merged::tensors`], f32 on the CPU.
    ///
    /// # Errors
    /// Tensors that are missing or of another shape.
    pub fn tensor(&self, name: &str, shape: &[i64]) -> Result<Tensor, LmError> {
        let weight = match (shape, name.strip_suffix(".weight")) {
            (&[out, inner], Some(prefix)) if name.contains("_proj.") => {
                match self.files.weights.linear(prefix, [out, inner], CPU)? {
                    LinearWeight::Dense(weight) => weight,
                    LinearWeight::Nf4(parts) => Nf4::from_parts(parts, Device::Cpu)
                        .map_err(|reason| {
                            LmError::corrupt(self.files.weights.path(), "NF4", reason)
                        })?
                        .decode(Kind::Float),
                }
            }
            _ => self.files.weights.tensor(name, shape, CPU)?,
        };
        let prefix = adapter_prefix(name);
        let part = |suffix: &str| self.adapter.get(&format!("{prefix}{suffix}"));
        let (Some(a), Some(b)) = (part("lora_A.weight"), part("lora_B.weight")) else {
            return Ok(weight);
        };
        let sum = weight + b.f_matmul(a)? * self.lora.scale();
        Ok(match part("lora_magnitude_vector") {
            None => sum,
            Some(magnitude) => {
                let length = sum.norm_scalaropt_dim(2.0, [1_i64], false);
                sum * (magnitude / length).unsqueeze(1)
            }
        })
    }
}

/// How the names of an adapter's tensors for a weight begin.
fn adapter_prefix(weight: &str) -> String {
    let module = weight.strip_suffix("weight").unwrap_or(weight);
    format!("base_model.model.{module}")
}
