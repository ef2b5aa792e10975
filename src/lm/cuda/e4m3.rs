//! Products in e4m3: rows rounded with a scale each, fused with what makes them, times a weight rounded alike.

use tch::{Device, Kind, Tensor};

use super::compiler::{Source, source};
use super::module::{Kernel, Module, bf16_rows};
use crate::lm::{Fp8, LmError, Placement};

pub(super) const SOURCE: Source = source!("e4m3.cu");

/// Values a thread keeps.
const PER_THREAD: i64 = 32;

/// Whether the device multiplies e4m3 itself.
pub fn multiplies_e4m3(placement: Placement) -> bool {
    placement.kind == Kind::BFloat16
        && super::capability(placement.device).is_some_and(|capability| capability >= (8, 9))
}

/// Rounded rows: x ≈ codes · scales.
pub struct Rows {
    /// e4m3 [T, width].
    pub codes: Tensor,
    /// f32 [T, 1].
    pub scales: Tensor,
}

impl Rows {
    /// Room for `rows` rows.
    ///
    /// # Errors
    /// Out of memory.
    pub fn empty(rows: i64, width: i64, device: Device) -> Result<Self, LmError> {
        Ok(Self {
            codes: Tensor::f_empty([rows, width], (Kind::Float8e4m3fn, device))?,
            scales: Tensor::f_empty([rows, 1], (Kind::Float, device))?,
        })
    }

    /// The first `rows` rows.
    pub fn first(&self, rows: i64) -> Self {
        Self {
            codes: self.codes.narrow(0, 0, rows),
            scales: self.scales.narrow(0, 0, rows),
        }
    }

    /// x · weightᵀ: bf16 [T, out].
    ///
    /// # Errors
    /// What libtorch refuses.
    pub fn multiply(&self, weight: &Fp8) -> Result<Tensor, LmError> {
        Ok(self.codes.f_internal_scaled_mm::<Tensor>(
            &weight.codes().f_tr()?,
            &self.scales,
            &weight.scales().f_unsqueeze(0)?,
            None,
            None,
            Kind::BFloat16,
            true,
        )?)
    }

    /// [`Rows::multiply`] into `out`.
    ///
    /// # Errors
    /// What libtorch refuses.
    pub fn multiply_into(&self, weight: &Fp8, out: &Tensor) -> Result<(), LmError> {
        let _ = self.codes.f_internal_scaled_mm_out::<Tensor>(
            out,
            &weight.codes().f_tr()?,
            &self.scales,
            &weight.scales().f_unsqueeze(0)?,
            None,
            None,
            Kind::BFloat16,
            true,
        )?;
        Ok(())
    }
}

/// The kernels that round.
#[derive(Clone, Copy)]
pub struct E4m3 {
    rows: Kernel,
    add_norm: Kernel,
    swiglu: Kernel,
}

impl E4m3 {
    /// # Errors
    /// [`LmError::Kernel`].
    pub fn new(device: Device) -> Result<Self, LmError> {
        let module = Module::get(SOURCE, device, &[])?;
        Ok(Self {
            rows: module.kernel("rows_e4m3")?,
            add_norm: module.kernel("add_norm_e4m3")?,
            swiglu: module.kernel("swiglu_e4m3")?,
        })
    }

    /// Whether rows of this width can be rounded and multiplied.
    pub fn takes(width: i64) -> bool {
        width % 16 == 0 && width <= PER_THREAD * 1024
    }

    /// bf16 [T, width] → rounded.
    ///
    /// # Errors
    /// [`LmError::Kernel`].
    pub fn round(&self, x: &Tensor, out: &Rows) -> Result<(), LmError> {
        let [rows, width] = shape(out);
        assert_eq!(x.size(), [rows, width]);
        let arguments = [
            x.into(),
            (&out.codes).into(),
            (&out.scales).into(),
            width.into(),
            bf16_rows(x).into(),
        ];
        self.rows.launch([rows, 1, 1], threads(width), &arguments)
    }

    /// x += y; out = norm(x) · weight, rounded.
    ///
    /// # Errors
    /// [`LmError::Kernel`].
    pub fn add_norm(
        &self,
        x: &Tensor,
        y: Option<&Tensor>,
        weight: &Tensor,
        out: &Rows,
        eps: f64,
    ) -> Result<(), LmError> {
        let [rows, width] = shape(out);
        for dense in [Some(x), y].into_iter().flatten() {
            assert_eq!((bf16_rows(dense), dense.size()[0]), (width, rows));
        }
        let arguments = [
            x.into(),
            y.into(),
            weight.into(),
            (&out.codes).into(),
            (&out.scales).into(),
            width.into(),
            (eps as f32).into(),
        ];
        self.add_norm
            .launch([rows, 1, 1], threads(width), &arguments)
    }

    /// `gate_up` [T, 2 · width] → silu(gate) · up, rounded.
    ///
    /// # Errors
    /// [`LmError::Kernel`].
    pub fn swiglu(&self, gate_up: &Tensor, out: &Rows) -> Result<(), LmError> {
        let [rows, width] = shape(out);
        assert_eq!((bf16_rows(gate_up), gate_up.size()[0]), (2 * width, rows));
        let arguments = [
            gate_up.into(),
            (&out.codes).into(),
            (&out.scales).into(),
            width.into(),
        ];
        self.swiglu.launch([rows, 1, 1], threads(width), &arguments)
    }
}

fn shape(out: &Rows) -> [i64; 2] {
    let size = out.codes.size();
    assert!(out.codes.is_contiguous() && E4m3::takes(size[1]));
    [size[0], size[1]]
}

/// Whole warps that hold a row, with as few values a thread as they can.
fn threads(width: i64) -> u32 {
    let per_thread = if width <= 8 * 1024 { 8 } else { 16 };
    let per_thread = if width > 16 * 1024 {
        PER_THREAD
    } else {
        per_thread
    };
    u32::try_from((width / per_thread + 31) / 32 * 32).expect("at most 1024")
}
