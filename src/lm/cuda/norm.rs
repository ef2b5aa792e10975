//! The fused residual sum and root mean square norm, forward and backward.

use tch::{Device, Tensor};

use super::compiler::{Source, source};
use super::module::{Kernel, Module, bf16_rows};
use crate::lm::LmError;

pub(super) const SOURCE: Source = source!("norm.cu");

/// The norm's kernels for rows of one width.
#[derive(Clone, Copy)]
pub struct Norm {
    forward: Kernel,
    backward: Kernel,
    rows_per_block: i64,
    hidden: i64,
}

impl Norm {
    /// # Errors
    /// [`LmError::Kernel`]; `hidden` must be a multiple of 8.
    pub fn new(hidden: i64, device: Device) -> Result<Self, LmError> {
        if hidden % 8 != 0 || hidden > 16_384 {
            return Err(LmError::kernel(
                SOURCE.name,
                format!("rows of {hidden} elements"),
            ));
        }
        let module = Module::get(SOURCE, device, &[("HIDDEN", hidden)])?;
        Ok(Self {
            forward: module.kernel("add_norm")?,
            backward: module.kernel("norm_backward")?,
            rows_per_block: if hidden <= 1024 { 4 } else { 1 },
            hidden,
        })
    }

    /// `out[:, :hidden]` = norm(x + y) · weight. `x`, `y`: [T, hidden]; `weight`: [hidden]; the sum goes to `sum`
    /// [T, hidden], which may be `x` or `y`; `out` may have longer rows.
    ///
    /// # Errors
    /// [`LmError::Kernel`].
    pub fn forward(
        &self,
        x: &Tensor,
        y: Option<&Tensor>,
        weight: &Tensor,
        sum: Option<&Tensor>,
        out: &Tensor,
        eps: f64,
    ) -> Result<(), LmError> {
        self.forward_to_round(x, y, weight, sum, out, None, eps)
    }

    /// [`Norm::forward`], with the largest magnitude of each row of `out` in `largest`, f32 [T].
    ///
    /// # Errors
    /// [`LmError::Kernel`].
    #[expect(
        clippy::too_many_arguments,
        reason = "the operands of one formula, each in its own memory"
    )]
    pub fn forward_to_round(
        &self,
        x: &Tensor,
        y: Option<&Tensor>,
        weight: &Tensor,
        sum: Option<&Tensor>,
        out: &Tensor,
        largest: Option<&Tensor>,
        eps: f64,
    ) -> Result<(), LmError> {
        let rows = x.size()[0];
        for dense in [Some(x), y, sum].into_iter().flatten() {
            assert_eq!((bf16_rows(dense), dense.size()[0]), (self.hidden, rows));
        }
        self.forward.launch(
            self.grid(rows),
            128,
            &[
                x.into(),
                y.into(),
                weight.into(),
                sum.into(),
                out.into(),
                bf16_rows(out).into(),
                rows.into(),
                (eps as f32).into(),
                largest.into(),
            ],
        )
    }

    /// `dx` = residual + the gradient of the norm at `x` for `dy[:, :hidden]`; `residual` may be `dx`. The normed rows are
    /// written to `normed[:, :hidden]` again. `largest`: as
    /// above, of `dx`.
    ///
    /// # Errors
    /// [`LmError::Kernel`].
    #[expect(
        clippy::too_many_arguments,
        reason = "the operands of one formula, each in its own memory"
    )]
    pub fn backward(
        &self,
        x: &Tensor,
        weight: &Tensor,
        dy: &Tensor,
        residual: Option<&Tensor>,
        dx: &Tensor,
        normed: Option<&Tensor>,
        largest: Option<&Tensor>,
        eps: f64,
    ) -> Result<(), LmError> {
        let rows = x.size()[0];
        for dense in [Some(x), residual, Some(dx)].into_iter().flatten() {
            assert_eq!((bf16_rows(dense), dense.size()[0]), (self.hidden, rows));
        }
        self.backward.launch(
            self.grid(rows),
            128,
            &[
                x.into(),
                weight.into(),
                dy.into(),
                bf16_rows(dy).into(),
                residual.into(),
                dx.into(),
                normed.into(),
                normed.map_or(0, bf16_rows).into(),
                rows.into(),
                (eps as f32).into(),
                largest.into(),
            ],
        )
    }

    fn grid(&self, rows: i64) -> [i64; 3] {
        [(rows + self.rows_per_block - 1) / self.rows_per_block, 1, 1]
    }
}
