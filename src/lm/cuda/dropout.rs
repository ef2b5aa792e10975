//! Dropout's mask as a tensor, for layers that the fused kernels do not compute.

use tch::{Device, Kind, Tensor};

use super::compiler::{Source, source};
use super::module::Module;
use crate::lm::LmError;

pub(super) const SOURCE: Source = source!("dropout.cu");

/// f32 of `shape`: 0 where an element is dropped, else `kept`. The same elements as on the CPU.
///
/// # Errors
/// [`LmError::Kernel`], or out of memory.
pub fn dropout_mask(
    shape: &[i64],
    kept: f32,
    seed: u64,
    threshold: u16,
    device: Device,
) -> Result<Tensor, LmError> {
    let kernel = Module::get(SOURCE, device, &[])?.kernel("dropout_mask")?;
    let mask = Tensor::f_empty(shape, (Kind::Float, device))?;
    let count = mask.numel() as i64;
    kernel.launch(
        [(count + 1023) / 1024, 1, 1],
        256,
        &[
            (&mask).into(),
            count.into(),
            kept.into(),
            seed.into(),
            u32::from(threshold).into(),
        ],
    )?;
    Ok(mask)
}
