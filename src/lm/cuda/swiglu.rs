//! The gated activation silu(gate) · up.

use tch::{Device, Tensor};

use super::compiler::{Source, source};
use super::module::{Kernel, Module, bf16_rows};
use crate::lm::LmError;

pub(super) const SOURCE: Source = source!("swiglu.cu");

#[derive(Clone, Copy)]
pub struct Swiglu {
    forward: Kernel,
}

impl Swiglu {
    /// # Errors
    /// [`LmError::Kernel`].
    pub fn new(device: Device) -> Result<Self, LmError> {
        let module = Module::get(SOURCE, device, &[])?;
        Ok(Self {
            forward: module.kernel("swiglu")?,
        })
    }

    /// `gate_up` [T, 2 · width] → `out[:, :width]`, whose rows may be longer. `width` is a multiple of 8.
    ///
    /// # Errors
    /// [`LmError::Kernel`].
    pub fn forward(&self, gate_up: &Tensor, out: &Tensor) -> Result<(), LmError> {
        let width = bf16_rows(gate_up) / 2;
        assert_eq!(width % 8, 0);
        self.forward.launch(
            [gate_up.size()[0], (width + 2047) / 2048, 1],
            256,
            &[
                gate_up.into(),
                out.into(),
                width.into(),
                bf16_rows(out).into(),
            ],
        )
    }
}
