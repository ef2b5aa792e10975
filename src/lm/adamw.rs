//! AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) over one flat tensor of parameters, with moments in f32 or in
//! blocks of 8 bits (Dettmers et al. 2022, arXiv:2110.02861).

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::cuda::{AdamWKernels, EightBitMoment, StepGradient, StepNumbers};
use super::{DynamicMap, LmError};

/// Elements that share one scale, and the alignment of tensors in the flat layout.
pub const BLOCK: i64 = 256;

/// How the moments are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Optimizer {
    #[default]
    #[serde(rename = "adamw")]
    AdamW,
    /// 8-bit moments for the large tensors, f32 for the small ones, whose errors would weigh more.
    #[serde(rename = "adamw_8bit")]
    AdamW8bit,
}

#[derive(Clone, Copy, Debug)]
pub struct AdamWConfig {
    pub beta1: f64,
    pub beta2: f64,
    pub epsilon: f64,
    /// Decoupled: the parameters shrink by `lr · weight_decay` each step.
    pub weight_decay: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self {
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.01,
        }
    }
}

/// The optimizer and its state: f32 moments for elements `[eight_bit, len)`, 8-bit ones for `[0, eight_bit)`.
pub struct AdamW {
    config: AdamWConfig,
    steps: u64,
    eight_bit: Option<EightBit>,
    full: Full,
}

/// Two moments in f32.
struct Full {
    start: i64,
    first: Tensor,
    second: Tensor,
}

/// Two moments as codes u8 [blocks, 256] and scales f32 [blocks].
struct EightBit {
    signed: DynamicMap,
    unsigned: DynamicMap,
    first: (Tensor, Tensor),
    second: (Tensor, Tensor),
}

impl AdamW {
    /// For `len` parameters of which the first `eight_bit` (a multiple of [`BLOCK`]) get 8-bit moments.
    pub fn new(config: AdamWConfig, len: i64, eight_bit: i64, device: Device) -> Self {
        let zeros = |shape: &[i64], kind| Tensor::zeros(shape, (kind, device));
        let blocks = eight_bit / BLOCK;
        let moment = || {
            (
                zeros(&[blocks, BLOCK], Kind::Uint8),
                zeros(&[blocks], Kind::Float),
            )
        };
        Self {
            config,
            steps: 0,
            eight_bit: (blocks > 0).then(|| EightBit {
                signed: DynamicMap::signed(device),
                unsigned: DynamicMap::unsigned(device),
                first: moment(),
                second: moment(),
            }),
            full: Full {
                start: eight_bit,
                first: zeros(&[len - eight_bit], Kind::Float),
                second: zeros(&[len - eight_bit], Kind::Float),
            },
        }
    }

    /// One update in place. `parameters`, `gradients`: f32 [len].
    pub fn step(
        &mut self,
        parameters: &mut Tensor,
        gradients: &Tensor,
        learning_rate: f64,
    ) -> Result<(), LmError> {
        self.steps += 1;
        let update = Update {
            config: self.config,
            learning_rate,
            correction1: 1.0 - self.config.beta1.powi(self.steps as i32),
            correction2: 1.0 - self.config.beta2.powi(self.steps as i32),
        };
        tch::no_grad(|| {
            if let Some(state) = &mut self.eight_bit {
                state.step(&update, parameters, gradients)?;
            }
            self.full.step(&update, parameters, gradients)
        })
    }

    /// [`AdamW::step`] by kernels, for a gradient that the host has not looked at: its division and clipping happen on the
    /// device.
    pub fn step_on_gpu(
        &mut self,
        kernels: &AdamWKernels,
        parameters: &Tensor,
        gradient: &StepGradient,
        learning_rate: f64,
    ) -> Result<(), LmError> {
        self.steps += 1;
        let steps = self.steps as i32;
        let numbers = StepNumbers {
            learning_rate,
            beta1: self.config.beta1,
            beta2: self.config.beta2,
            epsilon: self.config.epsilon,
            weight_decay: self.config.weight_decay,
            correction1: 1.0 - self.config.beta1.powi(steps),
            correction2: 1.0 - self.config.beta2.powi(steps),
        };
        if let Some(state) = &self.eight_bit {
            let moment = |map, (codes, absmax)| EightBitMoment { map, codes, absmax };
            let moments = [
                moment(&state.signed, (&state.first.0, &state.first.1)),
                moment(&state.unsigned, (&state.second.0, &state.second.1)),
            ];
            kernels.eight_bit(parameters, moments, gradient, &numbers)?;
        }
        let moments = [&self.full.first, &self.full.second];
        kernels.full(parameters, self.full.start, moments, gradient, &numbers)
    }

    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The tensors of the state by name, for a checkpoint.
    pub fn state(&self) -> Vec<(&'static str, Tensor)> {
        let mut state = vec![("first", &self.full.first), ("second", &self.full.second)];
        if let Some(eight_bit) = &self.eight_bit {
            state.extend([
                ("first_codes", &eight_bit.first.0),
                ("first_absmax", &eight_bit.first.1),
                ("second_codes", &eight_bit.second.0),
                ("second_absmax", &eight_bit.second.1),
            ]);
        }
        state
            .into_iter()
            .map(|(name, tensor)| (name, tensor.shallow_clone()))
            .collect()
    }

    /// Takes back what [`AdamW::state`] gave after `steps` steps. `saved` finds a tensor by name.
    pub fn restore(
        &mut self,
        steps: u64,
        saved: impl Fn(&str) -> Result<Tensor, LmError>,
    ) -> Result<(), LmError> {
        for (name, mut tensor) in self.state() {
            tensor.f_copy_(&saved(name)?)?;
        }
        self.steps = steps;
        Ok(())
    }
}

/// The numbers of one update.
struct Update {
    config: AdamWConfig,
    learning_rate: f64,
    correction1: f64,
    correction2: f64,
}

impl Update {
    /// Moves both moments towards the gradient.
    fn moments(&self, first: &mut Tensor, second: &mut Tensor, gradient: &Tensor) {
        let AdamWConfig { beta1, beta2, .. } = self.config;
        let _ = first.g_mul_scalar_(beta1);
        let _ = first.g_add_(&(gradient * (1.0 - beta1)));
        let _ = second.g_mul_scalar_(beta2);
        let _ = second.g_add_(&(gradient * (1.0 - beta2) * gradient));
    }

    fn apply(&self, parameters: &mut Tensor, first: &Tensor, second: &Tensor) {
        let shrink = 1.0 - self.learning_rate * self.config.weight_decay;
        let denominator = second.sqrt() / self.correction2.sqrt() + self.config.epsilon;
        let change = first / denominator * (self.learning_rate / self.correction1);
        let _ = parameters.g_mul_scalar_(shrink);
        let _ = parameters.g_sub_(&change);
    }
}

impl Full {
    fn step(
        &mut self,
        update: &Update,
        parameters: &Tensor,
        gradients: &Tensor,
    ) -> Result<(), LmError> {
        let length = self.first.size()[0];
        let mut parameters = parameters.f_narrow(0, self.start, length)?;
        let gradients = gradients.f_narrow(0, self.start, length)?;
        update.moments(&mut self.first, &mut self.second, &gradients);
        update.apply(&mut parameters, &self.first, &self.second);
        Ok(())
    }
}

impl EightBit {
    fn step(
        &mut self,
        update: &Update,
        parameters: &Tensor,
        gradients: &Tensor,
    ) -> Result<(), LmError> {
        let blocks = |flat: &Tensor| -> Result<Tensor, LmError> {
            let length = self.first.0.numel() as i64;
            Ok(flat.f_narrow(0, 0, length)?.f_view([-1, BLOCK])?)
        };
        let (mut parameters, gradients) = (blocks(parameters)?, blocks(gradients)?);
        let mut first = self.signed.dequantize(&self.first.0, &self.first.1);
        let mut second = self.unsigned.dequantize(&self.second.0, &self.second.1);
        update.moments(&mut first, &mut second, &gradients);
        update.apply(&mut parameters, &first, &second);
        store(&mut self.first, self.signed.quantize(&first))?;
        store(&mut self.second, self.unsigned.quantize(&second))
    }
}

fn store(moment: &mut (Tensor, Tensor), (codes, absmax): (Tensor, Tensor)) -> Result<(), LmError> {
    moment.0.f_copy_(&codes)?;
    moment.1.f_copy_(&absmax)?;
    Ok(())
}
