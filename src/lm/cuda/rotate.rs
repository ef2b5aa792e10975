//! The norm of query and key heads with their rotation in place, and the way of keys and values into a cache.

use tch::{Device, Kind, Tensor};

use super::compiler::{Source, source};
use super::module::{Kernel, Module, bf16_rows};
use super::rope::Heads;
use crate::lm::{LmError, RotaryTable};

pub(super) const SOURCE: Source = source!("rotate.cu");

/// Where the keys and values of rows are kept.
pub struct CacheRows<'a> {
    /// Per layer keys and values, each [slots, kv_heads, capacity, D].
    pub layers: &'a [(Tensor, Tensor)],
    /// i32 [T]: the slot of each row.
    pub slots: &'a Tensor,
    /// i32 [T]: the position of each row in its slot, below 0 for a row that is not kept.
    pub positions: &'a Tensor,
}

/// The kernel for one arrangement of heads.
#[derive(Clone, Copy)]
pub struct Rotate {
    kernel: Kernel,
    heads: Heads,
}

impl Rotate {
    /// `normed`: heads are normed before they are rotated.
    ///
    /// # Errors
    /// [`LmError::Kernel`]; heads must have 16, 32, 64, 128 or 256 elements.
    pub fn new(heads: Heads, normed: bool, device: Device) -> Result<Self, LmError> {
        if ![16, 32, 64, 128, 256].contains(&heads.dim) {
            let reason = format!("heads of {} elements", heads.dim);
            return Err(LmError::kernel(SOURCE.name, reason));
        }
        let module = Module::get(SOURCE, device, &defines(heads, normed))?;
        Ok(Self {
            kernel: module.kernel("rotate")?,
            heads,
        })
    }

    /// Norms and rotates the queries and keys of `qkv` [T, all · D] in place, and stores keys and values in layer `layer`
    /// of `cache`. `weight`: [rotated, D] where heads are normed. `rotary` has an entry per row, or per position where
    /// `by_position` is set, which needs a cache.
    ///
    /// # Errors
    /// [`LmError::Kernel`].
    pub fn apply(
        &self,
        qkv: &Tensor,
        weight: Option<&Tensor>,
        rotary: &RotaryTable,
        by_position: bool,
        cache: Option<(usize, &CacheRows<'_>)>,
        eps: f64,
    ) -> Result<(), LmError> {
        let rows = qkv.size()[0];
        assert_eq!(bf16_rows(qkv), self.heads.all() * self.heads.dim);
        let stored = cache.map(|(layer, rows)| &rows.layers[layer]);
        let capacity = stored.map_or(0, |(keys, values)| {
            assert!(keys.is_contiguous() && values.is_contiguous());
            assert_eq!(
                keys.size()[1..],
                [self.heads.key_value, keys.size()[2], self.heads.dim]
            );
            keys.size()[2]
        });
        if let Some((_, cache)) = cache {
            for index in [cache.slots, cache.positions] {
                assert_eq!((index.kind(), index.size()[0]), (Kind::Int, rows));
            }
        }
        assert!(cache.is_some() || !by_position);
        let heads = match cache {
            Some(_) => self.heads.all(),
            None => self.heads.rotated(),
        };
        let per_block = 256 / (self.heads.dim / 8);
        self.kernel.launch(
            [(heads + per_block - 1) / per_block, rows, 1],
            256,
            &[
                qkv.into(),
                weight.into(),
                rotary.cos().into(),
                rotary.signed_sin().into(),
                cache.map(|(_, cache)| cache.positions).into(),
                cache.map(|(_, cache)| cache.slots).into(),
                stored.map(|(keys, _)| keys).into(),
                stored.map(|(_, values)| values).into(),
                capacity.into(),
                i32::from(!by_position).into(),
                (eps as f32).into(),
            ],
        )
    }
}

pub(super) fn defines(heads: Heads, normed: bool) -> [(&'static str, i64); 4] {
    [
        ("HEADS", heads.query),
        ("KV_HEADS", heads.key_value),
        ("HEAD_DIM", heads.dim),
        ("NORM", i64::from(normed)),
    ]
}
