//! AdamW over flat parameters in one kernel per kind of moments, without a look of the host at the gradient.

use tch::{Device, Tensor};

use super::compiler::{Source, source};
use super::module::{Argument, Kernel, Module};
use crate::lm::{DynamicMap, LmError};

pub(super) const SOURCE: Source = source!("adamw.cu");

/// The sum of the gradients of a step's tokens, still on the device.
pub struct StepGradient<'a> {
    /// f32 [len].
    pub sum: &'a Tensor,
    /// f32 []: its norm. Where it is no finite number the kernels change nothing.
    pub norm: &'a Tensor,
    /// Trained tokens, by which the sum is divided.
    pub tokens: u64,
    /// Longer gradients are scaled down to this norm.
    pub max_norm: f64,
}

/// The numbers of one update.
#[derive(Clone, Copy, Debug)]
pub struct StepNumbers {
    pub learning_rate: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub epsilon: f64,
    pub weight_decay: f64,
    /// 1 - beta^steps.
    pub correction1: f64,
    pub correction2: f64,
}

/// Moments in blocks of 8 bits.
pub struct EightBitMoment<'a> {
    pub map: &'a DynamicMap,
    /// u8 [blocks, 256].
    pub codes: &'a Tensor,
    /// f32 [blocks].
    pub absmax: &'a Tensor,
}

#[derive(Clone, Copy)]
pub struct AdamWKernels {
    full: Kernel,
    eight_bit: Kernel,
}

impl AdamWKernels {
    /// # Errors
    /// [`LmError::Kernel`].
    pub fn new(device: Device) -> Result<Self, LmError> {
        let module = Module::get(SOURCE, device, &[])?;
        Ok(Self {
            full: module.kernel("adamw")?,
            eight_bit: module.kernel("adamw_8bit")?,
        })
    }

    /// Updates `parameters` from element `start` on, as many as the f32 moments have.
    ///
    /// # Errors
    /// [`LmError::Kernel`].
    pub fn full(
        &self,
        parameters: &Tensor,
        start: i64,
        [first, second]: [&Tensor; 2],
        gradient: &StepGradient,
        numbers: &StepNumbers,
    ) -> Result<(), LmError> {
        let count = first.size()[0];
        let parameters = parameters.narrow(0, start, count);
        let sum = gradient.sum.narrow(0, start, count);
        let mut arguments = vec![
            (&parameters).into(),
            (&sum).into(),
            first.into(),
            second.into(),
            count.into(),
            gradient.norm.into(),
        ];
        arguments.extend(floats(gradient, numbers).map(Argument::from));
        self.full
            .launch([(count + 255) / 256, 1, 1], 256, &arguments)
    }

    /// Updates the `parameters` from the start, as many as the 8-bit moments have.
    ///
    /// # Errors
    /// [`LmError::Kernel`].
    pub fn eight_bit(
        &self,
        parameters: &Tensor,
        [first, second]: [EightBitMoment; 2],
        gradient: &StepGradient,
        numbers: &StepNumbers,
    ) -> Result<(), LmError> {
        let mut arguments = vec![
            parameters.into(),
            gradient.sum.into(),
            first.codes.into(),
            first.absmax.into(),
            second.codes.into(),
            second.absmax.into(),
            first.map.values().into(),
            first.map.codes().into(),
            second.map.values().into(),
            second.map.codes().into(),
            gradient.norm.into(),
        ];
        arguments.extend(floats(gradient, numbers).map(Argument::from));
        let blocks = first.absmax.size()[0];
        self.eight_bit.launch([blocks, 1, 1], 256, &arguments)
    }
}

/// In the order in which both kernels take them.
fn floats(gradient: &StepGradient, numbers: &StepNumbers) -> [f32; 9] {
    [
        gradient.tokens as f64,
        gradient.max_norm.min(f64::from(f32::MAX)),
        numbers.learning_rate,
        numbers.beta1,
        numbers.beta2,
        numbers.epsilon,
        numbers.weight_decay,
        numbers.correction1,
        numbers.correction2.sqrt(),
    ]
    .map(|number| number as f32)
}
