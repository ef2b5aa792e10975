//! The norm of query and key heads with their rotation, forward and backward.

use tch::{Device, Tensor};

use super::compiler::{Source, source};
use super::module::{Kernel, Module, bf16_rows};
use crate::lm::{LmError, RotaryTable};

pub(super) const SOURCE: Source = source!("rope.cu");

/// Heads that lie side by side: queries, keys, values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    pub query: i64,
    pub key_value: i64,
    pub dim: i64,
}

impl Heads {
    /// Query and key heads.
    pub fn rotated(&self) -> i64 {
        self.query + self.key_value
    }

    /// All heads.
    pub fn all(&self) -> i64 {
        self.query + 2 * self.key_value
    }
}

/// The kernels for one arrangement of heads.
#[derive(Clone, Copy)]
pub struct HeadRotation {
    forward: Kernel,
    backward: Kernel,
    heads: Heads,
}

impl HeadRotation {
    /// `normed`: heads are normed before they are rotated.
    ///
    /// # Errors
    /// [`LmError::Kernel`]; heads must have 16, 32, 64, 128 or 256 elements.
    pub fn new(heads: Heads, normed: bool, device: Device) -> Result<Self, LmError> {
        if ![16, 32, 64, 128, 256].contains(&heads.dim) {
            return Err(LmError::kernel(
                SOURCE.name,
                format!("heads of {} elements", heads.dim),
            ));
        }
        let defines = [
            ("HEADS", heads.query),
            ("KV_HEADS", heads.key_value),
            ("HEAD_DIM", heads.dim),
            ("NORM", i64::from(normed)),
        ];
        let module = Module::get(SOURCE, device, &defines)?;
        Ok(Self {
            forward: module.kernel("rope")?,
            backward: module.kernel("rope_backward")?,
            heads,
        })
    }

    /// `qkv` [T, all · D] → `rotated` [T, rotated, D]. `weight`: [rotated, D] where heads are normed.
    ///
    /// # Errors
    /// [`LmError::Kernel`].
    pub fn forward(
        &self,
        qkv: &Tensor,
        weight: Option<&Tensor>,
        rotary: &RotaryTable,
        rotated: &Tensor,
        eps: f64,
    ) -> Result<(), LmError> {
        let tokens = qkv.size()[0];
        assert_eq!(bf16_rows(qkv), self.heads.all() * self.heads.dim);
        assert_eq!(
            rotated.size(),
            [tokens, self.heads.rotated(), self.heads.dim]
        );
        assert!(rotated.is_contiguous());
        self.forward.launch(
            self.grid(tokens * self.heads.rotated()),
            256,
            &[
                qkv.into(),
                weight.into(),
                rotary.cos().into(),
                rotary.signed_sin().into(),
                rotated.into(),
                tokens.into(),
                (eps as f32).into(),
            ],
        )
    }

    /// The gradients of rotated queries, keys and of values, [T, heads, D] each, → `dqkv` [T, all · D]. `largest`: f32 [T]
    /// of zeros for the largest magnitude of each row.
    ///
    /// # Errors
    /// [`LmError::Kernel`].
    #[expect(
        clippy::too_many_arguments,
        reason = "the operands of one formula, each in its own memory"
    )]
    pub fn backward(
        &self,
        qkv: &Tensor,
        weight: Option<&Tensor>,
        rotary: &RotaryTable,
        gradients: [&Tensor; 3],
        dqkv: &Tensor,
        largest: Option<&Tensor>,
        eps: f64,
    ) -> Result<(), LmError> {
        let tokens = qkv.size()[0];
        for rows in [qkv, dqkv] {
            assert_eq!(bf16_rows(rows), self.heads.all() * self.heads.dim);
        }
        let strides = gradients.map(|gradient| {
            let strides = gradient.stride();
            assert_eq!((gradient.size()[0], strides[2]), (tokens, 1));
            assert!(strides[0] % 4 == 0 && strides[1] % 4 == 0);
            [strides[0], strides[1]]
        });
        self.backward.launch(
            self.grid(tokens * self.heads.all()),
            256,
            &[
                qkv.into(),
                weight.into(),
                rotary.cos().into(),
                rotary.signed_sin().into(),
                gradients[0].into(),
                strides[0][0].into(),
                strides[0][1].into(),
                gradients[1].into(),
                strides[1][0].into(),
                strides[1][1].into(),
                gradients[2].into(),
                strides[2][0].into(),
                strides[2][1].into(),
                dqkv.into(),
                tokens.into(),
                (eps as f32).into(),
                largest.into(),
            ],
        )
    }

    fn grid(&self, heads: i64) -> [i64; 3] {
        let per_block = 256 / (self.heads.dim / 8);
        [(heads + per_block - 1) / per_block, 1, 1]
    }
}
