//! The trainable parameters of an adapter and their way into a decoder and back as gradients.

use std::collections::BTreeMap;

use tch::{Kind, Tensor};

use super::cuda::{LoraPart, memory_peak};
use super::decoder::Layer;
use super::dropout::Dropout;
use super::flat_parameters::FlatParameters;
use super::lora::{Dora, LoraUpdate};
use super::{Decoder, Linear, LmError, LoraConfig, Placement, memory, seeds};

/// PEFT's name of the model an adapter wraps.
const PREFIX: &str = "base_model.model.";

/// An adapter in f32. The decoder computes with copies of it, made by [`Adapter::install`].
pub struct Adapter {
    config: LoraConfig,
    parameters: FlatParameters,
    /// Per layer, per linear layer of it: the parts that have an update.
    layers: Vec<Vec<Vec<Part>>>,
    placement: Placement,
}

/// One part of a linear layer that has an update: where its rows and its parameters are.
struct Part {
    row: i64,
    out: i64,
    a: usize,
    b: usize,
    magnitude: Option<usize>,
}

impl Adapter {
    /// An adapter that changes nothing yet: A uniform in ±1/√in, drawn from `seed`, and B zero. Tensors of fewer than
    /// `large` elements lie behind the others (see [`FlatParameters`]).
    ///
    /// # Errors
    /// [`LmError::Training`] when the configuration is impossible or covers no layer.
    pub fn new(
        decoder: &Decoder,
        config: &LoraConfig,
        large: i64,
        seed: u64,
    ) -> Result<Self, LmError> {
        let adapter = Self::zeros(decoder, config, large)?;
        for (index, slot) in adapter.parameters.slots().iter().enumerate() {
            if slot.name.ends_with("lora_A.weight") {
                let bound = 1.0 / (slot.shape[1] as f32).sqrt();
                let count = (slot.shape[0] * slot.shape[1]) as usize;
                let values = seeds::uniform(seed, &slot.name, count, bound);
                let values = Tensor::from_slice(&values).view(slot.shape.as_slice());
                adapter.parameters.value(index).f_copy_(&values)?;
            }
        }
        for (layer, parts) in decoder.layers().iter().zip(&adapter.layers) {
            for (linear, parts) in layer.linears().into_iter().zip(parts) {
                for part in parts {
                    if let Some(magnitude) = part.magnitude {
                        let rows = linear.weight().f_narrow(0, part.row, part.out)?;
                        let lengths = row_lengths(&rows.f_to_kind(Kind::Float)?);
                        adapter.parameters.value(magnitude).f_copy_(&lengths)?;
                    }
                }
            }
        }
        Ok(adapter)
    }

    /// An adapter with given tensors, by their names in PEFT's files; `Err` says what does not fit.
    pub fn from_tensors(
        decoder: &Decoder,
        config: &LoraConfig,
        large: i64,
        mut tensors: BTreeMap<String, Tensor>,
    ) -> Result<Self, LmError> {
        let adapter = Self::zeros(decoder, config, large)?;
        for (index, slot) in adapter.parameters.slots().iter().enumerate() {
            let tensor = tensors
                .remove(&slot.name)
                .ok_or_else(|| LmError::Training(format!("the adapter has no `{}`", slot.name)))?;
            if tensor.size() != slot.shape {
                let (name, shape) = (&slot.name, &slot.shape);
                return Err(LmError::Training(format!(
                    "`{name}` of the adapter has shape {:?}, this model needs {shape:?}",
                    tensor.size()
                )));
            }
            adapter.parameters.value(index).f_copy_(&tensor)?;
        }
        match tensors.keys().next() {
            None => Ok(adapter),
            Some(name) => Err(LmError::Training(format!(
                "this model has no place for `{name}` of the adapter"
            ))),
        }
    }

    fn zeros(decoder: &Decoder, config: &LoraConfig, large: i64) -> Result<Self, LmError> {
        if config.r < 1 || !(0.0..1.0).contains(&config.dropout) || !config.alpha.is_finite() {
            return Err(LmError::Training(format!(
                "a LoRA of rank {}, alpha {} and dropout {} cannot be trained",
                config.r, config.alpha, config.dropout
            )));
        }
        let mut shapes = Vec::new();
        let mut layers = Vec::new();
        for layer in decoder.layers() {
            let mut linears = Vec::new();
            for linear in layer.linears() {
                linears.push(parts(linear, config, &mut shapes));
            }
            layers.push(linears);
        }
        if shapes.is_empty() {
            let targets = config.targets.join("`, `");
            return Err(LmError::Training(format!(
                "no linear layer is called `{targets}`"
            )));
        }
        let placement = decoder.placement();
        Ok(Self {
            config: config.clone(),
            parameters: FlatParameters::zeros(shapes, large, placement.device),
            layers,
            placement,
        })
    }

    pub fn config(&self) -> &LoraConfig {
        &self.config
    }

    pub fn parameters(&self) -> &FlatParameters {
        &self.parameters
    }

    /// The tensors by their names in PEFT's files, f32; handles to the adapter's memory.
    pub fn tensors(&self) -> Vec<(String, Tensor)> {
        let slots = self.parameters.slots().iter().enumerate();
        slots
            .map(|(index, slot)| (slot.name.clone(), self.parameters.value(index)))
            .collect()
    }

    /// Makes the decoder compute with the present parameters. `training` switches dropout on.
    pub fn install(&self, decoder: &mut Decoder, training: bool) -> Result<(), LmError> {
        for (layer, parts) in decoder.layers_mut().iter_mut().zip(&self.layers) {
            for (linear, parts) in layer.linears_mut().into_iter().zip(parts) {
                let update = match parts.is_empty() {
                    true => None,
                    false => Some(self.update(linear, parts, training)?),
                };
                linear.set_update(update);
            }
        }
        Ok(())
    }

    /// [`Adapter::install`] for inference: on a GPU, where the layers' weights fit once more into half of what is free, with
    /// copies of them that have the update merged in: summed in f32 and rounded once, as `flow export --merge` does with
    /// the base it merges into. A step then costs what it costs without an adapter. Weights that stay packed are not merged.
    ///
    /// # Errors
    /// What libtorch refuses, out of memory included.
    pub fn install_for_inference(&self, decoder: &mut Decoder) -> Result<(), LmError> {
        self.install(decoder, false)?;
        let device = self.placement.device;
        if !device.is_cuda() {
            return Ok(());
        }
        let linears = |layer: &mut Layer| layer.linears_mut().map(|linear| linear.merged_bytes());
        let bytes: u64 = decoder.layers_mut().iter_mut().flat_map(linears).sum();
        let cached = memory_peak(device).unwrap_or_default().cached();
        let free = memory::available(device).unwrap_or(0) + cached;
        if bytes > free / 2 {
            tracing::info!("the adapter's products stay beside the weights', for lack of memory");
            return Ok(());
        }
        for layer in decoder.layers_mut() {
            for linear in layer.linears_mut() {
                linear.keep_merged()?;
            }
        }
        Ok(())
    }

    /// Makes the decoder compute without any adapter again.
    pub fn remove(decoder: &mut Decoder) {
        for layer in decoder.layers_mut() {
            for linear in layer.linears_mut() {
                linear.set_update(None);
            }
        }
    }

    fn update(
        &self,
        linear: &Linear,
        parts: &[Part],
        training: bool,
    ) -> Result<LoraUpdate, LmError> {
        let Placement { device, kind } = self.placement;
        let value = |slot: usize| self.parameters.value(slot);
        tch::no_grad(|| {
            let a: Vec<Tensor> = parts.iter().map(|part| value(part.a)).collect();
            let a = Tensor::f_cat(&a, 0)?;
            let shape = [linear.out_features(), parts.len() as i64 * self.config.r];
            let b = Tensor::f_zeros(shape, (Kind::Float, device))?;
            for (index, part) in parts.iter().enumerate() {
                let block = value(part.b) * self.config.scale();
                self.block(&b, part, index).f_copy_(&block)?;
            }
            let dora = match self.config.dora {
                false => None,
                true => {
                    let sum = linear.weight().f_to_kind(Kind::Float)? + b.f_matmul(&a)?;
                    let norm = row_lengths(&sum);
                    // Rows without an update keep their length.
                    let magnitude = norm.copy();
                    for part in parts {
                        if let Some(slot) = part.magnitude {
                            magnitude
                                .f_narrow(0, part.row, part.out)?
                                .f_copy_(&value(slot))?;
                        }
                    }
                    Some(Dora {
                        magnitude: magnitude.set_requires_grad(true),
                        norm,
                    })
                }
            };
            Ok(LoraUpdate {
                a: a.f_to_kind(kind)?.set_requires_grad(true),
                b: b.f_to_kind(kind)?.set_requires_grad(true),
                dora,
                dropout: training.then(|| Dropout::new(self.config.dropout)),
                merged: None,
            })
        })
    }

    /// The parts with an update of each linear layer of a decoder layer, and where their parameters lie.
    pub(super) fn lora_parts(&self, layer: usize) -> Vec<Vec<LoraPart>> {
        let offset = |slot| self.parameters.offset(slot);
        let linears = self.layers[layer].iter();
        linears
            .map(|parts| {
                let parts = parts.iter();
                parts
                    .map(|part| LoraPart {
                        row: part.row,
                        out: part.out,
                        a: offset(part.a),
                        b: offset(part.b),
                    })
                    .collect()
            })
            .collect()
    }

    /// Adds the gradients of one layer's leaves (all linear layers' [`LoraUpdate::leaves`] in order).
    pub fn accumulate(&self, layer: usize, gradients: &[Tensor]) -> Result<(), LmError> {
        let mut gradients = gradients.iter();
        for parts in self.layers[layer].iter().filter(|parts| !parts.is_empty()) {
            let per_linear = if self.config.dora { 3 } else { 2 };
            let linear: Vec<&Tensor> = gradients.by_ref().take(per_linear).collect();
            for (index, part) in parts.iter().enumerate() {
                let rows = linear[0].f_narrow(0, index as i64 * self.config.r, self.config.r)?;
                self.add(part.a, &rows)?;
                // The decoder's B is scaled, so the chain rule scales its gradient.
                let block = self.block(linear[1], part, index).f_to_kind(Kind::Float)?;
                self.add(part.b, &(block * self.config.scale()))?;
                if let Some(slot) = part.magnitude {
                    self.add(slot, &linear[2].f_narrow(0, part.row, part.out)?)?;
                }
            }
        }
        Ok(())
    }

    /// The block of a fused B, or of its gradient, that belongs to the `index`-th part.
    fn block(&self, b: &Tensor, part: &Part, index: usize) -> Tensor {
        b.narrow(0, part.row, part.out)
            .narrow(1, index as i64 * self.config.r, self.config.r)
    }

    fn add(&self, slot: usize, gradient: &Tensor) -> Result<(), LmError> {
        let _ = self.parameters.gradient(slot).f_add_(gradient)?;
        Ok(())
    }
}

/// The parts of `linear` that get an update; their parameters are appended to `shapes`.
fn parts(linear: &Linear, config: &LoraConfig, shapes: &mut Vec<(String, Vec<i64>)>) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut row = 0;
    for (name, out) in linear.parts() {
        if config.covers(name) {
            let mut slot = |suffix: &str, shape: Vec<i64>| {
                shapes.push((format!("{PREFIX}{name}.{suffix}"), shape));
                shapes.len() - 1
            };
            parts.push(Part {
                row,
                out,
                a: slot("lora_A.weight", vec![config.r, linear.in_features()]),
                b: slot("lora_B.weight", vec![out, config.r]),
                magnitude: config
                    .dora
                    .then(|| slot("lora_magnitude_vector", vec![out])),
            });
        }
        row += out;
    }
    parts
}

/// The Euclidean length of each row: [out, in] → [out].
fn row_lengths(weight: &Tensor) -> Tensor {
    weight.norm_scalaropt_dim(2.0, [1_i64], false)
}
