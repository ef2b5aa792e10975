//! Frozen linear layers that a training step multiplies in e4m3: the weights, and the gated activation between two of them.
//!
//! Every row of an activation or gradient has a scale of its own, and so has every output row of a weight, whichever way it
//! is multiplied: forward the rows of W, backward those of Wᵀ. The low-rank updates stay in bf16 and are added to the
//! products. What rounds a matrix is the kernel that has to read it anyway for its update ([`super::LoraDown`]); what makes
//! the matrix leaves the largest magnitude of each row for it. Some layers multiply in bf16 on the way forward (see
//! `PLAIN_FORWARD`).

use tch::{Device, Kind, Tensor};

use super::compiler::{Source, source};
use super::e4m3::E4m3;
use super::lora::{Lora, LoraShape, Mask};
use super::module::{Kernel, Module, bf16_rows};
use crate::lm::{Fp8, Linear, LmError};

pub(super) const SOURCE: Source = source!("swiglu_update.cu", "tile.cuh");

/// Rows that a block of `swiglu_update.cu` takes.
const BLOCK_ROWS: i64 = 128;

/// A weight [out, in] as the forward pass multiplies it.
pub enum Forward {
    Rounded(Fp8),
    /// bf16: where rounding shows most in the loss.
    Plain(Tensor),
}

/// One frozen weight, and the adapter's B beside it.
pub struct RoundedWeight {
    pub forward: Forward,
    /// [in, out].
    pub backward: Fp8,
    /// bf16 [out, low] and [low, out].
    pub b: Tensor,
    pub bt: Tensor,
}

impl RoundedWeight {
    /// `plain`: the forward pass is not rounded.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(linear: &Linear, low: i64, plain: bool) -> Result<Self, LmError> {
        let weight = linear.weight();
        let (out, options) = (linear.out_features(), (Kind::BFloat16, weight.device()));
        Ok(Self {
            forward: match plain {
                true => Forward::Plain(weight.shallow_clone()),
                false => Forward::Rounded(Fp8::encode(&weight)?),
            },
            backward: Fp8::encode(&weight.f_tr()?.f_contiguous()?)?,
            b: Tensor::f_zeros([out, low], options)?,
            bt: Tensor::f_zeros([low, out], options)?,
        })
    }

    /// Bytes that it takes for a layer of this shape.
    pub fn bytes(shape: &LoraShape, plain: bool) -> u64 {
        let each = if plain { 3 } else { 2 };
        (shape.out_features * (each * shape.in_features + 4 * shape.low())) as u64
    }

    /// Why a layer of this shape cannot be multiplied so; None where it can.
    pub fn unsuitable(shape: &LoraShape) -> Option<String> {
        let widths = [shape.in_features, shape.out_features];
        let wrong = widths.into_iter().find(|&width| !E4m3::takes(width))?;
        Some(format!("rows of {wrong} elements are not rounded to e4m3"))
    }

    /// Takes over B of the present parameters, f32 and flat.
    ///
    /// # Errors
    /// [`LmError::Kernel`].
    pub fn install(&self, lora: &Lora, parameters: &Tensor) -> Result<(), LmError> {
        lora.install_b(parameters, &self.b)?;
        self.bt.shallow_clone().f_copy_(&self.b.f_tr()?)?;
        Ok(())
    }
}

/// What is there once for all layers.
pub struct Rounding {
    pub e4m3: E4m3,
    forward: Kernel,
    backward: Kernel,
    /// The low column at which those of `up` start.
    up_low: i64,
}

/// gate_up [T, 2 · width] without the update, and what that is made from: `low` [T, low], absent where neither part has
/// one, and B [2 · width, low].
#[derive(Clone, Copy)]
pub struct GateUp<'a> {
    pub rows: &'a Tensor,
    pub low: Option<&'a Tensor>,
    pub b: &'a Tensor,
}

impl Rounding {
    /// For layers whose gate and up are of shape `gate_up`, and whose last linear layer is of shape `down`.
    ///
    /// # Errors
    /// [`LmError::Kernel`].
    pub fn new(gate_up: &LoraShape, down: &LoraShape, device: Device) -> Result<Self, LmError> {
        // Each part takes its own columns alone where they fill whole steps.
        let apart = gate_up.parts.len() == 2 && gate_up.r % 16 == 0;
        let (columns, up_low) = match apart {
            true => (gate_up.r, gate_up.r),
            false => (gate_up.low(), 0),
        };
        let defines = [("STEPS", down.low() / 16), ("GATE_STEPS", columns / 16)];
        let module = Module::get(SOURCE, device, &defines)?;
        Ok(Self {
            e4m3: E4m3::new(device)?,
            forward: module.kernel("swiglu_update")?,
            backward: module.kernel("swiglu_update_backward")?,
            up_low,
        })
    }

    /// silu(gate) · up → `gated` [T, width]; `largest`: f32 [T] of zeros for the largest magnitude of each row.
    ///
    /// # Errors
    /// [`LmError::Kernel`].
    pub fn swiglu(
        &self,
        gate_up: GateUp<'_>,
        gated: &Tensor,
        largest: &Tensor,
    ) -> Result<(), LmError> {
        let [rows, width] = gate_up.check(gated);
        self.forward.launch(
            grid(rows, width),
            256,
            &[
                gate_up.rows.into(),
                gate_up.low.into(),
                gate_up.b.into(),
                gate_up.b.size()[1].into(),
                self.up_low.into(),
                gated.into(),
                largest.into(),
                width.into(),
                rows.into(),
            ],
        )
    }

    /// Its backward pass with the update `lora` on its result: `base` [T, width] is the gradient through the frozen weight
    /// above and `dlow` [T, low] that of the update. The gradient of gate and up takes the place of `gate_up.rows`, and
    /// `largest` is of its rows; `gated` is made again.
    ///
    /// # Errors
    /// [`LmError::Kernel`].
    pub fn swiglu_backward(
        &self,
        lora: &Lora,
        [base, dlow]: [&Tensor; 2],
        gate_up: GateUp<'_>,
        gated: &Tensor,
        largest: &Tensor,
        mask: Mask,
    ) -> Result<(), LmError> {
        let [rows, width] = gate_up.check(gated);
        assert_eq!((base.size(), bf16_rows(base)), (vec![rows, width], width));
        assert!(dlow.is_contiguous() && dlow.size() == [rows, lora.shape().low()]);
        self.backward.launch(
            grid(rows, width),
            256,
            &[
                base.into(),
                dlow.into(),
                lora.at().into(),
                gate_up.rows.into(),
                gate_up.low.into(),
                gate_up.b.into(),
                gate_up.b.size()[1].into(),
                self.up_low.into(),
                gated.into(),
                largest.into(),
                width.into(),
                rows.into(),
                mask.kept().into(),
                mask.seed.into(),
                mask.doubled().into(),
            ],
        )
    }
}

impl GateUp<'_> {
    /// The shape of `gated`, which the operands fit.
    fn check(&self, gated: &Tensor) -> [i64; 2] {
        let [rows, width] = gated.size()[..] else {
            unreachable!("the activation has two dimensions")
        };
        assert_eq!(bf16_rows(gated), width);
        assert_eq!(
            (self.rows.size(), bf16_rows(self.rows)),
            (vec![rows, 2 * width], 2 * width)
        );
        let low = self.b.size()[1];
        assert!(self.b.size()[0] == 2 * width && self.b.is_contiguous());
        assert_eq!(self.low.is_some(), low > 0);
        if let Some(tensor) = self.low {
            assert!(tensor.size() == [rows, low] && tensor.is_contiguous());
        }
        [rows, width]
    }
}

fn grid(rows: i64, width: i64) -> [i64; 3] {
    [(width + 255) / 256, (rows + BLOCK_ROWS - 1) / BLOCK_ROWS, 1]
}
