//! Gradients of low-rank factors, summed over all tokens into one flat arena.

use tch::{Device, Kind, Tensor};

use super::compiler::{Source, source};
use super::lora::{LoraShape, Mask, PARTS};
use super::module::{Argument, Kernel, Module, bf16_rows, multiprocessors};
use crate::lm::LmError;

pub(super) const SOURCE: Source = source!("lora_grad.cu");

/// Columns of x that a block of `lora_grad` takes.
const GRAD_COLUMNS: i64 = 128;
/// Tokens that a block of `lora_grad` takes at a time.
const GRAD_STEP: i64 = 32;
/// Blocks of `lora_grad` that a multiprocessor runs at once.
const GRAD_RESIDENT: i64 = 4;
/// The most rounds of blocks of `lora_grad`.
const GRAD_ROUNDS: i64 = 4;

/// `lora_grad` for a number of left columns.
#[derive(Clone, Copy)]
pub(super) struct GradKernels {
    grad: Kernel,
    sum: Kernel,
    /// Left columns of a block, and blocks side by side that take all.
    left: i64,
    groups: i64,
    /// Blocks that the GPU runs at once.
    resident: i64,
}

/// Where the gradients of all layers are added up.
pub struct GradientArena {
    /// f32, flat.
    gradients: Tensor,
    /// f32: partial sums, reused by all layers.
    partial: Tensor,
}

impl GradientArena {
    /// Adds to `gradients`, f32 and flat, for updates of `shapes`.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new<'a>(
        shapes: impl Iterator<Item = &'a LoraShape>,
        gradients: Tensor,
    ) -> Result<Self, LmError> {
        let device = gradients.device();
        let blocks = GRAD_ROUNDS * GRAD_RESIDENT * multiprocessors(device)?;
        let most = shapes
            .map(|shape| {
                let columns: i64 = shape.parts.iter().map(|part| grad_tiles(part.out)).sum();
                let a = (blocks + grad_tiles(shape.in_features)) * (shape.low() + 64);
                a.max((blocks + columns) * (shape.r + 64))
            })
            .max();
        let elements = most.unwrap_or(0) * GRAD_COLUMNS;
        Ok(Self {
            gradients,
            partial: Tensor::f_empty([elements], (Kind::Float, device))?,
        })
    }

    /// Room for the partial sums of `rows` rows of GRAD_COLUMNS behind `before` others.
    pub(super) fn partial(&self, before: i64, rows: i64) -> Tensor {
        self.partial
            .narrow(0, before * GRAD_COLUMNS, rows * GRAD_COLUMNS)
    }
}

/// A run of columns of x whose gradients are wanted (see `lora_grad.cu`).
pub(super) struct GradPart {
    pub(super) column: i64,
    pub(super) width: i64,
    pub(super) left: i64,
    pub(super) rank: i64,
    pub(super) places: Vec<i64>,
    pub(super) ranks: i64,
    pub(super) rank_stride: i64,
    pub(super) column_stride: i64,
}

impl GradKernels {
    pub(super) fn new(columns: i64, device: Device) -> Result<Self, LmError> {
        let tiles = ((columns + 15) / 16).clamp(1, 4);
        let module = Module::get(SOURCE, device, &[("TILES", tiles)])?;
        Ok(Self {
            grad: module.kernel("lora_grad")?,
            sum: module.kernel("lora_grad_sum")?,
            left: 16 * tiles,
            groups: (columns + 16 * tiles - 1) / (16 * tiles),
            resident: GRAD_RESIDENT * multiprocessors(device)?,
        })
    }

    /// Into how many ranges of tokens `blocks` are cut each: the fewest that leave little of the last round idle. Several
    /// rounds let the making of a mask overlap with the loads of other blocks.
    pub(super) fn ranges(&self, blocks: i64, mask: Mask) -> i64 {
        let most = (GRAD_ROUNDS * self.resident / blocks).max(1);
        let least = match mask.threshold {
            0 => 1,
            _ => ((GRAD_ROUNDS - 1) * self.resident / blocks).max(1),
        };
        let busy = |ranges: i64| {
            let rounds = (ranges * blocks + self.resident - 1) / self.resident;
            (ranges * blocks) as f64 / (rounds * self.resident) as f64
        };
        let good = (least..=most).find(|&ranges| busy(ranges) > 0.93);
        good.unwrap_or(least)
    }

    /// Adds scale · leftᵀ · dropout(x) of each part.
    pub(super) fn run(
        &self,
        left: &Tensor,
        x: &Tensor,
        parts: &[GradPart],
        scale: f64,
        mask: Mask,
        arena: &GradientArena,
    ) -> Result<(), LmError> {
        let rows = x.size()[0];
        let (fields, tiles) = fields(parts);
        let most = (rows + GRAD_STEP - 1) / GRAD_STEP;
        let ranges = self.ranges(tiles * self.groups, mask).min(most);
        let steps = (most + ranges - 1) / ranges;
        let left_columns = self.left * self.groups;
        let partial = arena.partial(0, ranges * tiles * left_columns);
        let arguments: [Argument; 11] = [
            left.into(),
            left.stride()[0].into(),
            x.into(),
            bf16_rows(x).into(),
            (&partial).into(),
            rows.into(),
            (steps * GRAD_STEP).into(),
            x.size()[1].into(),
            mask.seed.into(),
            mask.doubled().into(),
            fields.as_slice().into(),
        ];
        self.grad
            .launch([tiles, ranges, self.groups], 128, &arguments)?;
        self.sum_up(&partial, parts, ranges, scale, arena)
    }

    /// Adds scale · the sum over `ranges` of partial sums, f32 [ranges, tiles, left columns, GRAD_COLUMNS].
    pub(super) fn sum_up(
        &self,
        partial: &Tensor,
        parts: &[GradPart],
        ranges: i64,
        scale: f64,
        arena: &GradientArena,
    ) -> Result<(), LmError> {
        let (fields, tiles) = fields(parts);
        let left_columns = self.left * self.groups;
        self.sum.launch(
            [tiles, left_columns, 1],
            128,
            &[
                partial.into(),
                (&arena.gradients).into(),
                ranges.into(),
                left_columns.into(),
                (scale as f32).into(),
                fields.as_slice().into(),
            ],
        )
    }
}

/// The struct `Parts` of `lora_grad.cu`, and how many tiles of columns there are.
fn fields(parts: &[GradPart]) -> (Vec<u64>, i64) {
    let mut fields: Vec<i64> = Vec::new();
    let mut tiles = 0;
    for index in 0..PARTS {
        let Some(part) = parts.get(index) else {
            fields.extend([0; 12]);
            continue;
        };
        fields.extend([tiles, part.column, part.width, part.left, part.rank]);
        fields.extend((0..PARTS).map(|index| part.places.get(index).copied().unwrap_or(0)));
        fields.extend([part.ranks, part.rank_stride, part.column_stride]);
        tiles += grad_tiles(part.width);
    }
    fields.extend([parts.len() as i64, tiles]);
    let fields = fields.into_iter().map(|field| field as u64).collect();
    (fields, tiles)
}

/// Tiles of columns that a width falls into.
pub(super) fn grad_tiles(width: i64) -> i64 {
    (width + GRAD_COLUMNS - 1) / GRAD_COLUMNS
}
