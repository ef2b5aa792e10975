//! The backward pass of the gated activation that makes the gradients of the factors around it too.

use tch::{Device, Tensor};

use super::compiler::{Source, source};
use super::lora::{Lora, LoraShape, Mask};
use super::lora_grad::{GradKernels, GradientArena, grad_tiles};
use super::module::{Argument, Kernel, Module, bf16_rows};
use crate::lm::LmError;

pub(super) const SOURCE: Source = source!("swiglu_grad.cu", "tile.cuh");

/// Tokens that a warp takes at a time, and low columns that its tiles have.
const STEP: i64 = 16;
const LEFT: i64 = 16;

/// The kernel for a rank.
#[derive(Clone, Copy)]
pub struct SwigluGrad {
    kernel: Kernel,
    /// Adds up its partial sums.
    sums: GradKernels,
}

impl SwigluGrad {
    /// Whether there is a kernel for these layers: updates of `down` and of both parts of `gate_up`, of rank 8 or 16.
    pub fn fits(gate_up: &LoraShape, down: &LoraShape) -> bool {
        let width = down.in_features;
        let [gate, up] = &gate_up.parts[..] else {
            return false;
        };
        let places = [gate.row, gate.out, up.row, up.out] == [0, width, width, width];
        places && down.parts.len() == 1 && [8, 16].contains(&down.r) && gate_up.r == down.r
    }

    /// For updates of rank `r` of layers that it [fits](Self::fits).
    ///
    /// # Errors
    /// [`LmError::Kernel`].
    pub fn new(r: i64, device: Device) -> Result<Self, LmError> {
        Ok(Self {
            kernel: Module::get(SOURCE, device, &[("RANK", r)])?.kernel("swiglu_grad")?,
            sums: GradKernels::new(LEFT, device)?,
        })
    }

    /// The backward pass of silu(gate) · up below `layers`' second, [gate and up, down]. `base` [T, in] and `dlow`
    /// [T, low]: the gradient of down's input and of its low columns; `rows` [T, 2 · in]: gate and up, whose gradient takes
    /// their place; `low` [T, low]: the low columns of gate and up. Adds the gradients of down's A and of gate's and up's B.
    ///
    /// # Errors
    /// [`LmError::Kernel`].
    pub fn run(
        &self,
        layers: [&Lora; 2],
        [base, dlow]: [&Tensor; 2],
        rows: &Tensor,
        low: &Tensor,
        mask: Mask,
        arena: &GradientArena,
    ) -> Result<(), LmError> {
        let [gate_up, down] = layers.map(Lora::shape);
        assert!(Self::fits(gate_up, down));
        let (tokens, width) = (base.size()[0], down.in_features);
        assert_eq!(
            (bf16_rows(rows), bf16_rows(low)),
            (2 * width, gate_up.low())
        );
        assert_eq!([rows.size()[0], low.size()[0]], [tokens; 2]);
        assert_eq!(dlow.size(), [tokens, LEFT]);
        let tiles = grad_tiles(width);
        let most = (tokens + STEP - 1) / STEP;
        let ranges = self.sums.ranges(tiles, mask).min(most);
        let steps = (most + ranges - 1) / ranges;
        let count = ranges * tiles * LEFT;
        let partial = [arena.partial(0, count), arena.partial(count, 2 * count)];
        let arguments: [Argument; 16] = [
            base.into(),
            bf16_rows(base).into(),
            dlow.into(),
            bf16_rows(dlow).into(),
            layers[1].at().into(),
            rows.into(),
            low.into(),
            bf16_rows(low).into(),
            (&partial[0]).into(),
            (&partial[1]).into(),
            width.into(),
            tokens.into(),
            (steps * STEP).into(),
            mask.kept().into(),
            mask.seed.into(),
            mask.doubled().into(),
        ];
        self.kernel.launch([tiles, ranges, 1], 128, &arguments)?;
        let sums =
            |partial, parts: &[_], scale| self.sums.sum_up(partial, parts, ranges, scale, arena);
        // Factors as in `Lora::gradient_of_a` and `Lora::gradient_of_b`.
        sums(&partial[0], &[down.a_part()], f64::from(mask.kept()))?;
        sums(&partial[1], &gate_up.b_parts(), gate_up.scale)
    }
}
