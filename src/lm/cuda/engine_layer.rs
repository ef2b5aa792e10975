//! One decoder layer forward and backward.

use tch::{Kind, Tensor};

use super::engine::{Pass, TrainEngine};
use super::{Attended, Part};
use crate::lm::LmError;

/// The fused linear layers by their place in a layer.
const QKV: usize = 0;
const O: usize = 1;
const GATE_UP: usize = 2;
const DOWN: usize = 3;

/// What the backward pass of a layer needs; all else is made again from it by elementwise kernels.
pub(super) struct Saved {
    /// [T, hidden]: the layer's input.
    pub(super) x: Tensor,
    /// [T, all heads · D], before norm and rotation.
    qkv: Tensor,
    attended: Attended,
    /// [T, hidden]: behind attention.
    pub(super) x2: Tensor,
    /// [T, 2 · intermediate].
    gate_up: Tensor,
    /// [T, low] of each linear layer: its input times Aᵀ.
    low: [Option<Tensor>; 4],
}

impl TrainEngine {
    /// The layer's input is x + y (x where y is none); `y` then holds the sum. Returns what is saved and the output of the
    /// last linear layer (none unless `whole`), which together with `x2` makes the layer's output.
    pub(super) fn forward(
        &self,
        pass: &Pass,
        index: usize,
        x: &Tensor,
        y: Option<&Tensor>,
        whole: bool,
    ) -> Result<(Saved, Option<Tensor>), LmError> {
        let layer = &pass.decoder.layers()[index];
        let [tokens, hidden] = x.size()[..] else {
            unreachable!("hidden states have two dimensions")
        };
        let norm = &layer.input_norm;
        let normed = self.input(x, index, QKV)?;
        let sum = y.unwrap_or(x);
        self.timed(Part::Elementwise, || {
            self.norm
                .forward(x, y, &norm.weight, y.map(|_| sum), &normed, norm.eps)
        })?;
        let (qkv, low_qkv) = self.linear(pass, index, QKV, &normed)?;
        drop(normed);

        let rotated = self.rotated(pass, index, &qkv)?;
        let [q, k, v] = self.attention_inputs(&rotated, &qkv)?;
        let attended = self.timed(Part::Attention, || {
            pass.sequences.forward(&q, &k, &v, pass.gradient)
        })?;
        drop((q, k, v, rotated));
        let output = pass.sequences.output(&attended);

        // Attention's output is not ours to widen, so its update is a GEMM of its own.
        let lora = &self.layers[index][O].lora;
        let weight = self.weight(pass, index, O)?;
        let x2 = self.timed(Part::Gemm, || {
            output.f_matmul(&weight.f_narrow(1, 0, output.size()[1])?.tr())
        })?;
        let low_o = match lora.is_empty() {
            true => None,
            false => Some(self.timed(Part::Lora, || -> Result<Tensor, LmError> {
                let low = empty(tokens, lora.shape().low(), x)?;
                lora.down(&output, &low, None, self.mask(pass, index, O))?;
                let _ = x2
                    .shallow_clone()
                    .f_addmm_(&low, &lora.low_of(&weight).tr())?;
                Ok(low)
            })?),
        };
        let norm = &layer.post_norm;
        let normed = self.input(x, index, GATE_UP)?;
        self.timed(Part::Elementwise, || {
            self.norm
                .forward(sum, Some(&x2), &norm.weight, Some(&x2), &normed, norm.eps)
        })?;
        let (gate_up, low_gate_up) = self.linear(pass, index, GATE_UP, &normed)?;
        drop(normed);
        let gated = self.input(x, index, DOWN)?;
        self.timed(Part::Elementwise, || self.swiglu.forward(&gate_up, &gated))?;
        let low_down = self.low(pass, index, DOWN, &gated)?;
        let down = match whole {
            false => None,
            true => Some(self.product(pass, index, DOWN, &gated)?),
        };
        debug_assert_eq!(hidden, x2.size()[1]);
        let saved = Saved {
            x: sum.shallow_clone(),
            qkv,
            attended,
            x2,
            gate_up,
            low: [low_qkv, low_o, low_gate_up, low_down],
        };
        Ok((saved, down))
    }

    /// From the gradient of the layer's output, which is consumed, to that of its input; adds up the adapter's gradients.
    pub(super) fn backward(
        &self,
        pass: &Pass,
        index: usize,
        saved: Saved,
        dx: Tensor,
    ) -> Result<Tensor, LmError> {
        let Saved {
            x,
            qkv,
            attended,
            x2,
            gate_up,
            low,
        } = saved;
        let layer = &pass.decoder.layers()[index];
        let tokens = x.size()[0];

        let base = self.back(pass, index, DOWN, &dx)?;
        let lora = &self.layers[index][DOWN].lora;
        let gated = empty(tokens, lora.shape().in_features, &x)?;
        // The gradient takes the place of what it is made from.
        self.timed(Part::Elementwise, || {
            let mask = self.mask(pass, index, DOWN);
            lora.swiglu_backward(&base, &gate_up, &gate_up, &gated, mask)
        })?;
        self.accumulate_linear(pass, index, DOWN, &gated, &low, &dx, &base)?;
        drop((base, gated));

        let base = self.back(pass, index, GATE_UP, &gate_up)?;
        let normed = Tensor::f_empty_like(&x2)?;
        self.back_through_update(pass, index, GATE_UP, &base)?;
        let norm = &layer.post_norm;
        self.timed(Part::Elementwise, || {
            let (residual, normed) = (Some(&dx), Some(&normed));
            self.norm
                .backward(&x2, &norm.weight, &base, residual, &dx, normed, norm.eps)
        })?;
        self.accumulate_linear(pass, index, GATE_UP, &normed, &low, &gate_up, &base)?;
        drop((base, normed, gate_up, x2));

        let base = self.back(pass, index, O, &dx)?;
        let output = pass.sequences.output(&attended);
        let lora = &self.layers[index][O].lora;
        let d_output = match lora.is_empty() {
            true => base.shallow_clone(),
            false => empty(tokens, lora.shape().in_features, &x)?,
        };
        if !lora.is_empty() {
            self.timed(Part::Lora, || {
                lora.up(&base, &d_output, self.mask(pass, index, O))
            })?;
        }
        self.accumulate_linear(pass, index, O, &output, &low, &dx, &base)?;
        drop((base, output));

        let rotated = self.rotated(pass, index, &qkv)?;
        let d_qkv = Tensor::f_empty_like(&qkv)?;
        {
            let [q, k, v] = self.attention_inputs(&rotated, &qkv)?;
            let d_output = d_output.f_view([tokens, self.heads.query, self.heads.dim])?;
            let [dq, dk, dv] = self.timed(Part::Attention, || {
                pass.sequences.backward(&attended, &d_output, [&q, &k, &v])
            })?;
            self.timed(Part::Elementwise, || {
                let (weight, eps) = self.head_norm(pass, index);
                self.rotation
                    .backward(&qkv, weight, pass.rotary, [&dq, &dk, &dv], &d_qkv, eps)
            })?;
        }
        drop((rotated, d_output, attended, qkv));

        let base = self.back(pass, index, QKV, &d_qkv)?;
        let normed = Tensor::f_empty_like(&x)?;
        self.back_through_update(pass, index, QKV, &base)?;
        let norm = &layer.input_norm;
        self.timed(Part::Elementwise, || {
            let (residual, normed) = (Some(&dx), Some(&normed));
            self.norm
                .backward(&x, &norm.weight, &base, residual, &dx, normed, norm.eps)
        })?;
        self.accumulate_linear(pass, index, QKV, &normed, &low, &d_qkv, &base)?;
        Ok(dx)
    }

    /// Room for a linear layer's input with its low columns, [T, in + low].
    fn input(&self, like: &Tensor, index: usize, place: usize) -> Result<Tensor, LmError> {
        let shape = self.layers[index][place].lora.shape();
        empty(like.size()[0], shape.in_features + shape.low(), like)
    }

    /// Fills the low columns of a linear layer's input; returns a copy where a backward pass follows.
    fn low(
        &self,
        pass: &Pass,
        index: usize,
        place: usize,
        input: &Tensor,
    ) -> Result<Option<Tensor>, LmError> {
        let lora = &self.layers[index][place].lora;
        if lora.is_empty() {
            return Ok(None);
        }
        let saved = match pass.gradient {
            true => Some(empty(input.size()[0], lora.shape().low(), input)?),
            false => None,
        };
        self.timed(Part::Lora, || {
            let front = input.f_narrow(1, 0, lora.shape().in_features)?;
            let mask = self.mask(pass, index, place);
            lora.down(&front, &lora.low_of(input), saved.as_ref(), mask)
        })?;
        Ok(saved)
    }

    /// The layer on an input with filled low columns.
    fn product(
        &self,
        pass: &Pass,
        index: usize,
        place: usize,
        input: &Tensor,
    ) -> Result<Tensor, LmError> {
        let weight = self.weight(pass, index, place)?;
        self.timed(Part::Gemm, || Ok(input.f_matmul(&weight.tr())?))
    }

    fn linear(
        &self,
        pass: &Pass,
        index: usize,
        place: usize,
        input: &Tensor,
    ) -> Result<(Tensor, Option<Tensor>), LmError> {
        let low = self.low(pass, index, place, input)?;
        Ok((self.product(pass, index, place, input)?, low))
    }

    /// dy · [W | B]: the gradients of the layer's input through the frozen weight, [T, in], and of its low columns.
    fn back(
        &self,
        pass: &Pass,
        index: usize,
        place: usize,
        dy: &Tensor,
    ) -> Result<Tensor, LmError> {
        let weight = self.weight(pass, index, place)?;
        self.timed(Part::Gemm, || Ok(dy.f_matmul(&weight)?))
    }

    /// Adds the gradient through the update to that through the frozen weight.
    fn back_through_update(
        &self,
        pass: &Pass,
        index: usize,
        place: usize,
        base: &Tensor,
    ) -> Result<(), LmError> {
        let lora = &self.layers[index][place].lora;
        if lora.is_empty() {
            return Ok(());
        }
        self.timed(Part::Lora, || {
            lora.up(base, base, self.mask(pass, index, place))
        })
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "the operands of one formula, each in its own memory"
    )]
    fn accumulate_linear(
        &self,
        pass: &Pass,
        index: usize,
        place: usize,
        input: &Tensor,
        low: &[Option<Tensor>; 4],
        dy: &Tensor,
        base: &Tensor,
    ) -> Result<(), LmError> {
        let lora = &self.layers[index][place].lora;
        let Some(low) = &low[place] else {
            return Ok(());
        };
        self.timed(Part::Lora, || {
            let (dlow, mask) = (lora.low_of(base), self.mask(pass, index, place));
            lora.gradients(input, low, dy, &dlow, mask, &self.arena)
        })
    }

    /// Queries and keys after norm and rotation, [T, heads + kv_heads, D].
    fn rotated(&self, pass: &Pass, index: usize, qkv: &Tensor) -> Result<Tensor, LmError> {
        let shape = [qkv.size()[0], self.heads.rotated(), self.heads.dim];
        let rotated = Tensor::f_empty(shape, (Kind::BFloat16, qkv.device()))?;
        self.timed(Part::Elementwise, || {
            let (weight, eps) = self.head_norm(pass, index);
            self.rotation
                .forward(qkv, weight, pass.rotary, &rotated, eps)
        })?;
        Ok(rotated)
    }

    fn head_norm<'a>(&self, pass: &Pass<'a>, index: usize) -> (Option<&'a Tensor>, f64) {
        match &pass.decoder.layers()[index].qk_norm {
            Some(norm) => (Some(&norm.weight), norm.eps),
            None => (None, 0.0),
        }
    }

    /// Queries, keys and values, [T, heads, D] each, as views.
    fn attention_inputs(&self, rotated: &Tensor, qkv: &Tensor) -> Result<[Tensor; 3], LmError> {
        let heads = self.heads;
        let all = qkv.f_view([-1, heads.all(), heads.dim])?;
        Ok([
            rotated.f_narrow(1, 0, heads.query)?,
            rotated.f_narrow(1, heads.query, heads.key_value)?,
            all.f_narrow(1, heads.rotated(), heads.key_value)?,
        ])
    }
}

fn empty(rows: i64, columns: i64, like: &Tensor) -> Result<Tensor, LmError> {
    Ok(Tensor::f_empty(
        [rows, columns],
        (Kind::BFloat16, like.device()),
    )?)
}
