//! The low-rank update of one fused linear layer: its operands in bf16, the products that are not GEMMs, its gradients.

use tch::{Device, Kind, Tensor};

use super::compiler::{Source, source};
use super::lora_grad::{GradKernels, GradPart, GradientArena};
use super::module::{Kernel, Module, bf16_rows};
use crate::lm::LmError;

pub(super) const DOWN: Source = source!("lora_down.cu");
pub(super) const UP: Source = source!("lora_up.cu");
pub(super) const INSTALL: Source = source!("lora_install.cu");

/// The most parts of a fused layer.
pub(super) const PARTS: usize = 4;
/// One part of a fused layer that has an update.
#[derive(Clone, Copy, Debug)]
pub struct LoraPart {
    /// Its first output row, and how many it has.
    pub row: i64,
    pub out: i64,
    /// Where A [r, in] and B [out, r] start in the flat parameters.
    pub a: i64,
    pub b: i64,
}

/// Shape of the update of a fused layer.
#[derive(Clone, Debug)]
pub struct LoraShape {
    pub in_features: i64,
    pub out_features: i64,
    pub r: i64,
    pub parts: Vec<LoraPart>,
    /// The factor of B · A.
    pub scale: f64,
}

impl LoraShape {
    /// The low columns, rounded up to what the tensor cores take: 0 without an update.
    pub fn low(&self) -> i64 {
        (self.parts.len() as i64 * self.r + 15) / 16 * 16
    }
}

/// What dropout drops: the mask's seed and the probability in 65,536ths, 0 for none.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mask {
    pub seed: u64,
    pub threshold: u16,
}

impl Mask {
    pub fn new(probability: f64, seed: u64) -> Self {
        Self {
            seed,
            threshold: (probability * 65_536.0).round() as u16,
        }
    }

    /// By how much the kept elements grow.
    fn kept(self) -> f32 {
        (1.0 / (1.0 - f64::from(self.threshold) / 65_536.0)) as f32
    }

    /// The threshold in both halves of a word.
    pub(super) fn doubled(self) -> u32 {
        u32::from(self.threshold) * 0x1_0001
    }
}

/// The kernels and operands of one update.
pub struct Lora {
    shape: LoraShape,
    /// bf16 [low, in]; the rows of the parts in order, then zeros.
    a: Tensor,
    /// bf16 [in, low].
    at: Tensor,
    down: Kernel,
    down_tiles: i64,
    up: Kernel,
    swiglu_backward: Kernel,
    grad: [GradKernels; 2],
    install: [Kernel; 2],
}

/// Whether the kernels can compute an update of this shape.
pub fn fits(shape: &LoraShape) -> bool {
    let even = shape
        .parts
        .iter()
        .all(|part| part.row % 8 == 0 && part.out % 8 == 0);
    shape.in_features % 16 == 0
        && even
        && shape.r % 2 == 0
        && shape.low() <= 192
        && shape.parts.len() <= PARTS
}

impl Lora {
    /// # Errors
    /// [`LmError::Kernel`].
    pub fn new(shape: LoraShape, device: Device) -> Result<Self, LmError> {
        assert!(fits(&shape));
        let (low, options) = (shape.low(), (Kind::BFloat16, device));
        let tiles = [6, 4, 2].into_iter().find(|tiles| low / 8 % tiles == 0);
        let down_tiles = tiles.unwrap_or(2);
        let up = Module::get(UP, device, &[("STEPS", low / 16)])?;
        let install = Module::get(INSTALL, device, &[])?;
        Ok(Self {
            a: Tensor::f_zeros([low, shape.in_features], options)?,
            at: Tensor::f_zeros([shape.in_features, low], options)?,
            down: Module::get(DOWN, device, &[("TILES", down_tiles)])?.kernel("lora_down")?,
            down_tiles,
            up: up.kernel("lora_up")?,
            swiglu_backward: up.kernel("swiglu_backward")?,
            grad: [
                GradKernels::new(low, device)?,
                GradKernels::new(shape.r, device)?,
            ],
            install: [
                install.kernel("lora_install_a")?,
                install.kernel("lora_install_b")?,
            ],
            shape,
        })
    }

    pub fn shape(&self) -> &LoraShape {
        &self.shape
    }

    /// Whether there is an update at all.
    pub fn is_empty(&self) -> bool {
        self.shape.parts.is_empty()
    }

    /// Takes over the present parameters, f32 and flat. `weight` [out, in + low] gets B into its last columns.
    ///
    /// # Errors
    /// [`LmError::Kernel`].
    pub fn install(&self, parameters: &Tensor, weight: &Tensor) -> Result<(), LmError> {
        self.install_a(parameters)?;
        self.install_b(parameters, weight)
    }

    /// A alone.
    ///
    /// # Errors
    /// [`LmError::Kernel`].
    pub fn install_a(&self, parameters: &Tensor) -> Result<(), LmError> {
        if self.is_empty() {
            return Ok(());
        }
        let LoraShape { in_features, .. } = self.shape;
        self.install[0].launch(
            [(in_features + 255) / 256, self.shape.low(), 1],
            256,
            &[
                parameters.into(),
                (&self.a).into(),
                (&self.at).into(),
                in_features.into(),
                self.shape.low().into(),
                self.install_parts().as_slice().into(),
            ],
        )
    }

    /// B alone, into the last columns of `weight` [out, in + low].
    ///
    /// # Errors
    /// [`LmError::Kernel`].
    pub fn install_b(&self, parameters: &Tensor, weight: &Tensor) -> Result<(), LmError> {
        let (out, low) = (self.shape.out_features, self.shape.low());
        let b = weight.narrow(1, self.shape.in_features, low);
        self.install[1].launch(
            [(out * low + 255) / 256, 1, 1],
            256,
            &[
                parameters.into(),
                (&b).into(),
                bf16_rows(weight).into(),
                out.into(),
                low.into(),
                (self.shape.scale as f32).into(),
                self.install_parts().as_slice().into(),
            ],
        )
    }

    fn install_parts(&self) -> Vec<u64> {
        let mut fields: Vec<i64> = Vec::new();
        for index in 0..PARTS {
            let part = self.shape.parts.get(index);
            fields.extend(part.map_or([0; 4], |part| [part.row, part.out, part.a, part.b]));
        }
        fields.extend([self.shape.parts.len() as i64, self.shape.r]);
        fields.into_iter().map(|field| field as u64).collect()
    }

    /// `low` = dropout(x) · Aᵀ, into `out` [T, low] (columns of a wider matrix) and into `saved` [T, low].
    ///
    /// # Errors
    /// [`LmError::Kernel`].
    pub fn down(
        &self,
        x: &Tensor,
        out: &Tensor,
        saved: Option<&Tensor>,
        mask: Mask,
    ) -> Result<(), LmError> {
        if self.is_empty() {
            return Ok(());
        }
        let rows = x.size()[0];
        self.down.launch(
            [(rows + 31) / 32, self.shape.low() / 8 / self.down_tiles, 1],
            256,
            &[
                x.into(),
                bf16_rows(x).into(),
                (&self.a).into(),
                out.into(),
                bf16_rows(out).into(),
                saved.into(),
                saved.map_or(0, bf16_rows).into(),
                self.shape.in_features.into(),
                rows.into(),
                mask.kept().into(),
                mask.seed.into(),
                mask.doubled().into(),
            ],
        )
    }

    /// `out` [T, in] = base[:, :in] + dropout's mask ⊙ (dlow · A), where dlow [T, low] is what lies behind `base` [T, in +
    /// low]. `out` may be the front of `base`.
    ///
    /// # Errors
    /// [`LmError::Kernel`].
    pub fn up(&self, base: &Tensor, out: &Tensor, mask: Mask) -> Result<(), LmError> {
        let (rows, inner) = (base.size()[0], self.shape.in_features);
        self.up.launch(
            self.up_grid(rows),
            256,
            &[
                base.into(),
                bf16_rows(base).into(),
                (&self.low_of(base)).into(),
                bf16_rows(base).into(),
                (&self.at).into(),
                out.into(),
                bf16_rows(out).into(),
                inner.into(),
                rows.into(),
                mask.kept().into(),
                mask.seed.into(),
                mask.doubled().into(),
            ],
        )
    }

    /// The backward pass of silu(gate) · up with this update on its result: `base` as in [`Lora::up`]; `gate_up` [T, 2 ·
    /// in] → `d_gate_up`, which may be the same memory, and `gated[:, :in]`.
    ///
    /// # Errors
    /// [`LmError::Kernel`].
    pub fn swiglu_backward(
        &self,
        base: &Tensor,
        gate_up: &Tensor,
        d_gate_up: &Tensor,
        gated: &Tensor,
        mask: Mask,
    ) -> Result<(), LmError> {
        let (rows, inner) = (base.size()[0], self.shape.in_features);
        for matrix in [gate_up, d_gate_up] {
            assert_eq!(bf16_rows(matrix), 2 * inner);
        }
        self.swiglu_backward.launch(
            self.up_grid(rows),
            256,
            &[
                base.into(),
                bf16_rows(base).into(),
                (&self.low_of(base)).into(),
                bf16_rows(base).into(),
                (&self.at).into(),
                gate_up.into(),
                d_gate_up.into(),
                gated.into(),
                bf16_rows(gated).into(),
                inner.into(),
                rows.into(),
                mask.kept().into(),
                mask.seed.into(),
                mask.doubled().into(),
            ],
        )
    }

    /// The low columns behind the others of a matrix [T, in + low].
    pub fn low_of(&self, matrix: &Tensor) -> Tensor {
        matrix.narrow(1, self.shape.in_features, self.shape.low())
    }

    fn up_grid(&self, rows: i64) -> [i64; 3] {
        [(self.shape.in_features + 255) / 256, (rows + 63) / 64, 1]
    }

    /// Adds the gradients of A and B to those in `arena`. `x`: [T, in], the layer's input; `low`: [T, low] of
    /// [`Lora::down`]; `dy`: [T, out]; `dlow`: [T, low], dy · B.
    ///
    /// # Errors
    /// [`LmError::Kernel`], or out of memory.
    pub fn gradients(
        &self,
        x: &Tensor,
        low: &Tensor,
        dy: &Tensor,
        dlow: &Tensor,
        mask: Mask,
        arena: &GradientArena,
    ) -> Result<(), LmError> {
        if self.is_empty() {
            return Ok(());
        }
        let LoraShape {
            in_features,
            r,
            ref parts,
            scale,
            ..
        } = self.shape;
        let places: Vec<i64> = parts.iter().map(|part| part.a).collect();
        let all = GradPart {
            column: 0,
            width: in_features,
            left: 0,
            rank: parts.len() as i64 * r,
            places,
            ranks: r,
            rank_stride: in_features,
            column_stride: 1,
        };
        // The mask's growth belongs to x.
        let kept = f64::from(mask.kept());
        self.grad[0].run(dlow, x, &[all], kept, mask, arena)?;
        let each: Vec<GradPart> = (0..)
            .zip(parts)
            .map(|(index, part)| GradPart {
                column: part.row,
                width: part.out,
                left: index * r,
                rank: r,
                places: vec![part.b],
                ranks: r,
                rank_stride: 1,
                column_stride: r,
            })
            .collect();
        // The layer's B is scaled, so the chain rule scales its gradient.
        self.grad[1].run(low, dy, &each, scale, Mask::default(), arena)
    }
}
