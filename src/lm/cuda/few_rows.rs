//! The product of very few rows with a weight: cuBLAS reads the weight at half the speed of the memory there.

use tch::{Device, Tensor};

use super::compiler::{Source, source};
use super::module::{Kernel, Module, bf16_rows};
use crate::lm::LmError;

pub(super) const SOURCE: Source = source!("few_rows.cu");

/// By the number of rows, from one.
pub struct FewRows([Kernel; 4]);

impl FewRows {
    /// # Errors
    /// [`LmError::Kernel`].
    pub fn new(device: Device) -> Result<Self, LmError> {
        let module = Module::get(SOURCE, device, &[])?;
        Ok(Self([
            module.kernel("few_rows_1")?,
            module.kernel("few_rows_2")?,
            module.kernel("few_rows_3")?,
            module.kernel("few_rows_4")?,
        ]))
    }

    /// `x` [rows, in] · `weight`ᵀ [out, in] → `y` [rows, out]; whether there is a kernel for as many rows.
    ///
    /// # Errors
    /// [`LmError::Kernel`].
    pub fn multiply(&self, x: &Tensor, weight: &Tensor, y: &Tensor) -> Result<bool, LmError> {
        let (rows, inner, out) = (x.size()[0], weight.size()[1], weight.size()[0]);
        let kernel = usize::try_from(rows - 1).ok().and_then(|at| self.0.get(at));
        let Some(kernel) = kernel.filter(|_| inner % 8 == 0) else {
            return Ok(false);
        };
        assert_eq!(
            (bf16_rows(x), bf16_rows(y), y.size()[0]),
            (inner, out, rows)
        );
        let arguments = [
            x.into(),
            weight.into(),
            y.into(),
            out.into(),
            inner.into(),
            bf16_rows(weight).into(),
        ];
        kernel.launch([(out + 7) / 8, 1, 1], 256, &arguments)?;
        Ok(true)
    }
}
