//! Packed weights decoded into the rows of a wider bf16 matrix.

use tch::{Device, Kind, Tensor};

use super::compiler::{Source, source};
use super::module::{Kernel, Module, bf16_rows};
use crate::lm::{Int8, LmError, Nf4};

pub(super) const SOURCE: Source = source!("dequantise.cu");

#[derive(Clone, Copy)]
pub struct Dequantise {
    nf4: Kernel,
    int8: Kernel,
}

impl Dequantise {
    /// # Errors
    /// [`LmError::Kernel`].
    pub fn new(device: Device) -> Result<Self, LmError> {
        let module = Module::get(SOURCE, device, &[])?;
        Ok(Self {
            nf4: module.kernel("nf4")?,
            int8: module.kernel("int8")?,
        })
    }

    /// Whether [`Dequantise::nf4`] can decode this weight: a thread's 8 elements share a row and a scale.
    pub fn fits(weight: &Nf4) -> bool {
        let operands = weight.operands();
        let [out, inner] = weight.shape();
        let nested = operands.nested.map_or(1, |nested| nested.block);
        let powers = [operands.block, nested]
            .iter()
            .all(|block| block.count_ones() == 1);
        powers && operands.block >= 8 && inner % 8 == 0 && out * inner < 1 << 32
    }

    /// The bits of [`Nf4::decode`] into the front of each row of `out` [out, ≥ in].
    ///
    /// # Errors
    /// [`LmError::Kernel`].
    pub fn nf4(&self, weight: &Nf4, out: &Tensor) -> Result<(), LmError> {
        let [rows, inner] = weight.shape();
        let operands = weight.operands();
        assert_eq!(out.size()[0], rows);
        let nested = operands.nested.as_ref();
        self.nf4.launch(
            [(rows * inner / 8 + 1023) / 1024, 1, 1],
            256,
            &[
                operands.packed.into(),
                operands.scales.into(),
                nested.map(|nested| nested.absmax).into(),
                nested.map(|nested| nested.map).into(),
                operands.values.into(),
                out.into(),
                bf16_rows(out).into(),
                inner.into(),
                (rows * inner).into(),
                operands.block.trailing_zeros().into(),
                nested
                    .map_or(0, |nested| nested.block.trailing_zeros())
                    .into(),
                nested.map_or(0.0, |nested| nested.offset as f32).into(),
            ],
        )
    }

    /// The bits of [`Int8::decode`] into the front of each row of `out` [out, ≥ in].
    ///
    /// # Errors
    /// [`LmError::Kernel`].
    pub fn int8(&self, weight: &Int8, out: &Tensor) -> Result<(), LmError> {
        let codes = weight.codes();
        let [rows, inner] = codes.size()[..] else {
            unreachable!("a linear weight has two dimensions")
        };
        assert!(codes.kind() == Kind::Int8 && inner % 8 == 0 && out.size()[0] == rows);
        self.int8.launch(
            [(rows * inner / 8 + 255) / 256, 1, 1],
            256,
            &[
                codes.into(),
                weight.absmax().into(),
                out.into(),
                bf16_rows(out).into(),
                inner.into(),
                (rows * inner).into(),
            ],
        )
    }
}
