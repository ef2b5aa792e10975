//! The low-rank update of one fused linear layer: its operands in bf16, the products that are not GEMMs, its gradients.

use tch::{Device, Kind, Tensor};

use super::compiler::{Source, source};
use super::lora_down::{LoraDown, Rounded};
use super::lora_grad::{GradKernels, GradPart, GradientArena};
use super::module::{Argument, Kernel, Module, bf16_rows};
use crate::lm::LmError;

pub(super) const UP: Source = source!("lora_up.cu", "tile.cuh");
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

    /// Where the gradient of all parts' A goes, summed from products of dlow and the layer's input.
    pub(super) fn a_part(&self) -> GradPart {
        GradPart {
            column: 0,
            width: self.in_features,
            left: 0,
            rank: self.parts.len() as i64 * self.r,
            places: self.parts.iter().map(|part| part.a).collect(),
            ranks: self.r,
            rank_stride: self.in_features,
            column_stride: 1,
        }
    }

    /// Where those of each part's B go, summed from products of x · Aᵀ and the gradient of the layer's output.
    pub(super) fn b_parts(&self) -> Vec<GradPart> {
        let r = self.r;
        let parts = (0..).zip(&self.parts);
        parts
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
            .collect()
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
    pub(super) fn kept(self) -> f32 {
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
    down: Option<LoraDown>,
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
    /// `rounds`: see [`LoraDown::new`].
    ///
    /// # Errors
    /// [`LmError::Kernel`].
    pub fn new(shape: LoraShape, rounds: bool, device: Device) -> Result<Self, LmError> {
        assert!(fits(&shape));
        let (low, options) = (shape.low(), (Kind::BFloat16, device));
        let up = Module::get(UP, device, &[("STEPS", low / 16)])?;
        let install = Module::get(INSTALL, device, &[])?;
        Ok(Self {
            a: Tensor::f_zeros([low, shape.in_features], options)?,
            at: Tensor::f_zeros([shape.in_features, low], options)?,
            down: match low {
                0 => None,
                low => Some(LoraDown::new(low, rounds, device)?),
            },
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

    /// Takes over A from the present parameters, f32 and flat.
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

    /// Writes the scaled B of the present parameters, f32 and flat, to `b` [out, low], columns of a wider matrix or not.
    ///
    /// # Errors
    /// [`LmError::Kernel`].
    pub fn install_b(&self, parameters: &Tensor, b: &Tensor) -> Result<(), LmError> {
        if self.is_empty() {
            return Ok(());
        }
        let (out, low) = (self.shape.out_features, self.shape.low());
        assert_eq!(b.size(), [out, low]);
        self.install[1].launch(
            [(out * low + 255) / 256, 1, 1],
            256,
            &[
                parameters.into(),
                b.into(),
                bf16_rows(b).into(),
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

    /// dropout(x) · Aᵀ, see [`LoraDown::run`].
    ///
    /// # Errors
    /// [`LmError::Kernel`].
    pub fn down(
        &self,
        x: &Tensor,
        out: &Tensor,
        saved: Option<&Tensor>,
        mask: Mask,
        rounded: Option<Rounded<'_>>,
    ) -> Result<(), LmError> {
        match &self.down {
            None => Ok(()),
            Some(down) => down.run(x, &self.a, out, saved, mask, rounded),
        }
    }

    /// dy · B with nothing dropped: the same product with Bᵀ [low, out] in A's place.
    ///
    /// # Errors
    /// [`LmError::Kernel`].
    pub fn down_gradient(
        &self,
        dy: &Tensor,
        bt: &Tensor,
        dlow: &Tensor,
        rounded: Option<Rounded<'_>>,
    ) -> Result<(), LmError> {
        match &self.down {
            None => Ok(()),
            Some(down) => down.run(dy, bt, dlow, None, Mask::default(), rounded),
        }
    }

    /// `out` [T, in] = base + dropout's mask ⊙ (dlow · A). `base`: [T, in]; `dlow`: [T, low]. `out` may be `base`.
    ///
    /// # Errors
    /// [`LmError::Kernel`].
    pub fn up(
        &self,
        base: &Tensor,
        dlow: &Tensor,
        out: &Tensor,
        mask: Mask,
    ) -> Result<(), LmError> {
        let mut arguments = self.up_arguments(base, dlow);
        arguments.extend::<[Argument; 2]>([out.into(), bf16_rows(out).into()]);
        arguments.extend(self.mask_arguments(base, mask));
        self.up.launch(self.up_grid(base), 256, &arguments)
    }

    /// The backward pass of silu(gate) · up with this update on its result: `base` and `dlow` as in [`Lora::up`];
    /// `gate_up` [T, 2 · in] → `d_gate_up`, which may be the same memory, and `gated` [T, in].
    ///
    /// # Errors
    /// [`LmError::Kernel`].
    pub fn swiglu_backward(
        &self,
        [base, dlow]: [&Tensor; 2],
        gate_up: &Tensor,
        d_gate_up: &Tensor,
        gated: &Tensor,
        mask: Mask,
    ) -> Result<(), LmError> {
        for matrix in [gate_up, d_gate_up] {
            assert_eq!(bf16_rows(matrix), 2 * self.shape.in_features);
        }
        let mut arguments = self.up_arguments(base, dlow);
        arguments.extend::<[Argument; 2]>([gate_up.into(), d_gate_up.into()]);
        arguments.extend::<[Argument; 2]>([gated.into(), bf16_rows(gated).into()]);
        arguments.extend(self.mask_arguments(base, mask));
        self.swiglu_backward
            .launch(self.up_grid(base), 256, &arguments)
    }

    /// What both kernels of the way up start with.
    fn up_arguments<'a>(&self, base: &Tensor, dlow: &Tensor) -> Vec<Argument<'a>> {
        let dlow_rows = dlow.stride()[0];
        let (base_rows, at) = (bf16_rows(base), &self.at);
        assert_eq!(base.size()[1], self.shape.in_features);
        assert_eq!(dlow.size(), [base.size()[0], self.shape.low()]);
        vec![
            base.into(),
            base_rows.into(),
            dlow.into(),
            dlow_rows.into(),
            at.into(),
        ]
    }

    /// What they end with.
    fn mask_arguments<'a>(&self, base: &Tensor, mask: Mask) -> [Argument<'a>; 5] {
        [
            self.shape.in_features.into(),
            base.size()[0].into(),
            mask.kept().into(),
            mask.seed.into(),
            mask.doubled().into(),
        ]
    }

    /// A transposed, bf16 [in, low].
    pub(super) fn at(&self) -> &Tensor {
        &self.at
    }

    /// The low columns behind the others of a matrix [T, in + low].
    pub fn low_of(&self, matrix: &Tensor) -> Tensor {
        matrix.narrow(1, self.shape.in_features, self.shape.low())
    }

    fn up_grid(&self, base: &Tensor) -> [i64; 3] {
        let (columns, rows) = (self.shape.in_features, base.size()[0]);
        [(columns + 255) / 256, (rows + 63) / 64, 1]
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
        self.gradient_of_a(x, dlow, mask, arena)?;
        self.gradient_of_b(low, dy, arena)
    }

    /// That of A alone.
    ///
    /// # Errors
    /// As above.
    pub fn gradient_of_a(
        &self,
        x: &Tensor,
        dlow: &Tensor,
        mask: Mask,
        arena: &GradientArena,
    ) -> Result<(), LmError> {
        if self.is_empty() {
            return Ok(());
        }
        // The mask's growth belongs to x.
        let kept = f64::from(mask.kept());
        self.grad[0].run(dlow, x, &[self.shape.a_part()], kept, mask, arena)
    }

    /// That of B alone.
    ///
    /// # Errors
    /// As above.
    pub fn gradient_of_b(
        &self,
        low: &Tensor,
        dy: &Tensor,
        arena: &GradientArena,
    ) -> Result<(), LmError> {
        if self.is_empty() {
            return Ok(());
        }
        // The layer's B is scaled, so the chain rule scales its gradient.
        let (parts, scale) = (self.shape.b_parts(), self.shape.scale);
        self.grad[1].run(low, dy, &parts, scale, Mask::default(), arena)
    }
}
