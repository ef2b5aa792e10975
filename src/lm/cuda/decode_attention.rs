//! Attention of one new token per row against a cache of slots.

use tch::{Device, Kind, Tensor};

use super::compiler::{Source, source};
use super::module::{Kernel, Module, bf16_rows};
use super::rope::Heads;
use super::rotate::CacheRows;
use crate::lm::LmError;

pub(super) const SOURCE: Source = source!("decode.cu");

/// Enough blocks to keep a large GPU busy; what is computed does not depend on how many it has.
const BLOCKS: i64 = 528;
const MAX_SPLITS: i64 = 32;

pub struct DecodeAttention {
    kernel: Kernel,
    heads: Heads,
    /// f32: what the splits of a row found.
    partial: Tensor,
    /// i32 [rows · kv_heads]: how many splits are done.
    done: Tensor,
}

impl DecodeAttention {
    /// For at most `rows` rows.
    ///
    /// # Errors
    /// [`LmError::Kernel`]; out of memory.
    pub fn new(heads: Heads, rows: i64, device: Device) -> Result<Self, LmError> {
        let module = Module::get(SOURCE, device, &defines(heads))?;
        let splits: i64 = (1..=rows)
            .map(|rows| rows * splits(heads, rows))
            .max()
            .unwrap_or(1);
        Ok(Self {
            kernel: module.kernel("decode_attention")?,
            heads,
            partial: Tensor::f_empty(
                [splits * heads.query * (heads.dim + 2)],
                (Kind::Float, device),
            )?,
            done: Tensor::f_zeros([rows * heads.key_value], (Kind::Int, device))?,
        })
    }

    /// `qkv` [rows, all · D], rotated and stored in layer `layer` of `cache` → `out` [rows, heads · D]. Rows whose
    /// position is below 0 get zeros.
    ///
    /// # Errors
    /// [`LmError::Kernel`].
    pub fn forward(
        &self,
        qkv: &Tensor,
        layer: usize,
        cache: &CacheRows<'_>,
        out: &Tensor,
    ) -> Result<(), LmError> {
        let rows = qkv.size()[0];
        let Heads {
            query,
            key_value,
            dim,
        } = self.heads;
        assert_eq!(bf16_rows(qkv), self.heads.all() * dim);
        assert_eq!((bf16_rows(out), out.size()[0]), (query * dim, rows));
        let (keys, values) = &cache.layers[layer];
        let factor = std::f64::consts::LOG2_E / (dim as f64).sqrt();
        self.kernel.launch(
            [key_value, rows, splits(self.heads, rows)],
            128,
            &[
                qkv.into(),
                keys.into(),
                values.into(),
                cache.positions.into(),
                cache.slots.into(),
                out.into(),
                (&self.partial).into(),
                (&self.done).into(),
                key_value.into(),
                keys.size()[2].into(),
                (factor as f32).into(),
            ],
        )
    }
}

fn splits(heads: Heads, rows: i64) -> i64 {
    (BLOCKS / (rows * heads.key_value)).clamp(1, MAX_SPLITS)
}

pub(super) fn defines(heads: Heads) -> [(&'static str, i64); 2] {
    [
        ("HEAD_DIM", heads.dim),
        ("GROUP", heads.query / heads.key_value),
    ]
}
