//! The token losses of a chunk of logits and their gradient in place of the logits.

use tch::{Device, Kind, Tensor};

use super::compiler::{Source, source};
use super::module::{Kernel, Module, bf16_rows};
use crate::lm::LmError;

pub(super) const SOURCE: Source = source!("cross_entropy.cu");

#[derive(Clone, Copy)]
pub struct CrossEntropy {
    kernel: Kernel,
}

impl CrossEntropy {
    /// # Errors
    /// [`LmError::Kernel`].
    pub fn new(device: Device) -> Result<Self, LmError> {
        let module = Module::get(SOURCE, device, &[])?;
        Ok(Self {
            kernel: module.kernel("cross_entropy")?,
        })
    }

    /// `logits` [n, vocab] with a vocabulary divisible by 8, `targets` i64 [n], `loss` f32 [n]. With `gradient` the
    /// logits become softmax - one-hot.
    ///
    /// # Errors
    /// [`LmError::Kernel`].
    pub fn run(
        &self,
        logits: &Tensor,
        targets: &Tensor,
        loss: &Tensor,
        gradient: bool,
    ) -> Result<(), LmError> {
        let vocab = bf16_rows(logits);
        assert_eq!(logits.size(), [targets.size()[0], vocab]);
        assert_eq!((loss.kind(), loss.size()), (Kind::Float, targets.size()));
        self.kernel.launch(
            [targets.size()[0], 1, 1],
            1024,
            &[
                logits.into(),
                targets.into(),
                loss.into(),
                vocab.into(),
                i32::from(gradient).into(),
            ],
        )
    }
}
