//! The way down into a low-rank update, x · Aᵀ, which can round x to e4m3 in passing.

use tch::{Device, Tensor};

use super::compiler::{Source, source};
use super::e4m3::Rows;
use super::lora::Mask;
use super::module::{Argument, Kernel, Module, bf16_rows};
use crate::lm::LmError;

pub(super) const SOURCE: Source = source!("lora_down.cu");

/// Rows that a block takes.
const BLOCK_ROWS: i64 = 32;

/// The kernels for a number of low columns.
#[derive(Clone, Copy)]
pub struct LoraDown {
    plain: Kernel,
    /// None where it was not asked for.
    rounding: Option<Kernel>,
    /// Low columns in all, and tiles of 8 that a block makes.
    low: i64,
    tiles: i64,
}

/// Where the rows of x go rounded.
#[derive(Clone, Copy)]
pub struct Rounded<'a> {
    /// f32 [T]: the largest magnitude of each row.
    pub largest: &'a Tensor,
    pub rows: &'a Rows,
}

impl LoraDown {
    /// `low` is a positive multiple of 16. `rounds`: a GPU that computes in e4m3 is to round with it.
    ///
    /// # Errors
    /// [`LmError::Kernel`].
    pub fn new(low: i64, rounds: bool, device: Device) -> Result<Self, LmError> {
        let tiles = [6, 4, 2].into_iter().find(|tiles| low / 8 % tiles == 0);
        let tiles = tiles.unwrap_or(2);
        let kernel = |rounds: i64| {
            let defines = [("TILES", tiles), ("ROUNDS", rounds)];
            Module::get(SOURCE, device, &defines)?.kernel("lora_down")
        };
        Ok(Self {
            plain: kernel(0)?,
            rounding: match rounds {
                true => Some(kernel(1)?),
                false => None,
            },
            low,
            tiles,
        })
    }

    /// dropout(x) · Aᵀ into `out` [T, low] (columns of a wider matrix) and into `saved` [T, low]. `x`: [T, in] of any row
    /// stride; `a`: [low, in]. Rounding is of x without dropout.
    ///
    /// # Errors
    /// [`LmError::Kernel`].
    pub fn run(
        &self,
        x: &Tensor,
        a: &Tensor,
        out: &Tensor,
        saved: Option<&Tensor>,
        mask: Mask,
        rounded: Option<Rounded<'_>>,
    ) -> Result<(), LmError> {
        let [rows, inner] = x.size()[..] else {
            unreachable!("x has two dimensions")
        };
        assert_eq!(a.size(), [self.low, inner]);
        assert!(a.is_contiguous() && inner % 8 == 0);
        let mut arguments: Vec<Argument> = vec![
            x.into(),
            bf16_rows(x).into(),
            a.into(),
            out.into(),
            bf16_rows(out).into(),
            saved.into(),
            saved.map_or(0, bf16_rows).into(),
            inner.into(),
            rows.into(),
            mask.kept().into(),
            mask.seed.into(),
            mask.doubled().into(),
        ];
        let kernel = match rounded {
            None => self.plain,
            Some(Rounded { largest, rows: to }) => {
                assert_eq!(to.codes.size(), [rows, inner]);
                assert!(to.codes.is_contiguous() && largest.size() == [rows]);
                arguments.extend::<[Argument; 3]>([
                    largest.into(),
                    (&to.codes).into(),
                    (&to.scales).into(),
                ]);
                self.rounding.expect("asked for when it was made")
            }
        };
        kernel.launch(
            [
                (rows + BLOCK_ROWS - 1) / BLOCK_ROWS,
                self.low / 8 / self.tiles,
                1,
            ],
            256,
            &arguments,
        )
    }
}
