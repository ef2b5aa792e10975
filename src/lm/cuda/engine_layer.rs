//! One decoder layer forward and backward.

use tch::{Kind, Tensor};

use super::engine::{Pass, TrainEngine};
use super::engine_linear::{DOWN, GATE_UP, O, Operand, QKV, empty};
use super::{Attended, GateUp, Part, Rounding};
use crate::lm::LmError;

/// What the backward pass of a layer needs; all else is made again from it by elementwise kernels.
pub(super) struct Saved {
    /// [T, hidden]: the layer's input.
    pub(super) x: Tensor,
    /// [T, all heads · D], before norm and rotation.
    qkv: Tensor,
    /// [T, heads + kv_heads, D]: queries and keys behind both.
    rotated: Tensor,
    attended: Attended,
    /// [T, hidden]: behind attention.
    pub(super) x2: Tensor,
    /// [T, 2 · intermediate]; without the update where layers are rounded.
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
        let norm = &layer.input_norm;
        let input = Operand {
            rows: self.input(x, index, QKV)?,
            largest: self.largest(x)?,
        };
        let sum = y.unwrap_or(x);
        self.timed(Part::Elementwise, || {
            let (weight, largest) = (&norm.weight, input.largest.as_ref());
            let to = y.map(|_| sum);
            self.norm
                .forward_to_round(x, y, weight, to, &input.rows, largest, norm.eps)
        })?;
        let (qkv, low_qkv) = self.linear(pass, index, QKV, &input)?;
        drop(input);

        let rotated = self.rotated(pass, index, &qkv)?;
        let [q, k, v] = self.attention_inputs(&rotated, &qkv)?;
        let attended = self.timed(Part::Attention, || {
            pass.sequences.forward(&q, &k, &v, pass.gradient)
        })?;
        drop((q, k, v));
        // Attention's output is not ours to widen, nor to take the largest magnitudes of.
        let output = Operand {
            rows: pass.sequences.output(&attended),
            largest: None,
        };
        let (x2, low_o) = self.linear(pass, index, O, &output)?;
        drop(output);

        let norm = &layer.post_norm;
        let input = Operand {
            rows: self.input(x, index, GATE_UP)?,
            largest: self.largest(x)?,
        };
        self.timed(Part::Elementwise, || {
            let (weight, largest) = (&norm.weight, input.largest.as_ref());
            let (y, to) = (Some(&x2), Some(&x2));
            self.norm
                .forward_to_round(sum, y, weight, to, &input.rows, largest, norm.eps)
        })?;
        let (gate_up, low_gate_up) = self.linear(pass, index, GATE_UP, &input)?;
        drop(input);
        let gated = Operand {
            rows: self.input(x, index, DOWN)?,
            largest: self.largest(x)?,
        };
        self.timed(Part::Elementwise, || {
            match (self.gate_up(index, &gate_up, &low_gate_up), &gated.largest) {
                (Some((rounding, operands)), Some(largest)) => {
                    rounding.swiglu(operands, &gated.rows, largest)
                }
                _ => self.swiglu.forward(&gate_up, &gated.rows),
            }
        })?;
        let (down, low_down) = match whole {
            true => {
                let (down, low) = self.linear(pass, index, DOWN, &gated)?;
                (Some(down), low)
            }
            false => (None, self.low(pass, index, DOWN, &gated.rows)?),
        };
        let saved = Saved {
            x: sum.shallow_clone(),
            qkv,
            rotated,
            attended,
            x2,
            gate_up,
            low: [low_qkv, low_o, low_gate_up, low_down],
        };
        Ok((saved, down))
    }

    /// From the gradient of the layer's output, which is consumed, to that of its input, which the first layer has no use
    /// for; adds up the adapter's gradients.
    pub(super) fn backward(
        &self,
        pass: &Pass,
        index: usize,
        saved: Saved,
        dx: Operand,
    ) -> Result<Option<Operand>, LmError> {
        let Saved {
            x,
            qkv,
            rotated,
            attended,
            x2,
            gate_up,
            low,
        } = saved;
        let layer = &pass.decoder.layers()[index];
        let tokens = x.size()[0];

        let below = self.back(pass, index, DOWN, &dx)?;
        let lora = &self.layers[index][DOWN].lora;
        let gated = empty(tokens, lora.shape().in_features, &x)?;
        let largest = self.largest(&x)?;
        // The gradient takes the place of what it is made from.
        self.timed(Part::Elementwise, || {
            let mask = self.mask(pass, index, DOWN);
            let gradients = [&below.base, &below.dlow];
            match (self.gate_up(index, &gate_up, &low[GATE_UP]), &largest) {
                (Some((rounding, operands)), Some(largest)) => {
                    rounding.swiglu_backward(lora, gradients, operands, &gated, largest, mask)
                }
                _ => lora.swiglu_backward(gradients, &gate_up, &gate_up, &gated, mask),
            }
        })?;
        self.accumulate_linear(pass, index, DOWN, &gated, &low, &dx.rows, &below.dlow)?;
        drop((below, gated));

        let d_gate_up = Operand {
            rows: gate_up,
            largest,
        };
        let below = self.back(pass, index, GATE_UP, &d_gate_up)?;
        let normed = Tensor::f_empty_like(&x2)?;
        self.back_through_update(pass, index, GATE_UP, &below.base, &below.dlow)?;
        let norm = &layer.post_norm;
        let dx = Operand {
            rows: dx.rows,
            largest: self.largest(&x)?,
        };
        self.timed(Part::Elementwise, || {
            let (residual, normed) = (Some(&dx.rows), Some(&normed));
            let (weight, largest) = (&norm.weight, dx.largest.as_ref());
            let (base, dx) = (&below.base, &dx.rows);
            self.norm
                .backward(&x2, weight, base, residual, dx, normed, largest, norm.eps)
        })?;
        let dy = &d_gate_up.rows;
        self.accumulate_linear(pass, index, GATE_UP, &normed, &low, dy, &below.dlow)?;
        drop((below, normed, d_gate_up, x2));

        let below = self.back(pass, index, O, &dx)?;
        let output = pass.sequences.output(&attended);
        let lora = &self.layers[index][O].lora;
        // Attention takes its gradient in rows of their own.
        let d_output = match lora.is_empty() {
            true => below.base.shallow_clone(),
            false => empty(tokens, lora.shape().in_features, &x)?,
        };
        if !lora.is_empty() {
            self.timed(Part::Lora, || {
                let mask = self.mask(pass, index, O);
                lora.up(&below.base, &below.dlow, &d_output, mask)
            })?;
        }
        self.accumulate_linear(pass, index, O, &output, &low, &dx.rows, &below.dlow)?;
        drop((below, output));

        let d_qkv = Operand {
            rows: Tensor::f_empty_like(&qkv)?,
            largest: self.largest(&x)?,
        };
        {
            let [q, k, v] = self.attention_inputs(&rotated, &qkv)?;
            let d_output = d_output.f_view([tokens, self.heads.query, self.heads.dim])?;
            let [dq, dk, dv] = self.timed(Part::Attention, || {
                pass.sequences.backward(&attended, &d_output, [&q, &k, &v])
            })?;
            self.timed(Part::Elementwise, || {
                let (weight, eps) = self.head_norm(pass, index);
                let (gradients, largest) = ([&dq, &dk, &dv], d_qkv.largest.as_ref());
                let (rotary, d_qkv) = (pass.rotary, &d_qkv.rows);
                self.rotation
                    .backward(&qkv, weight, rotary, gradients, d_qkv, largest, eps)
            })?;
        }
        drop((rotated, d_output, attended, qkv));

        let norm = &layer.input_norm;
        let normed = Tensor::f_empty_like(&x)?;
        if index == 0 {
            if low[QKV].is_some() {
                let dlow = self.back_low(pass, index, QKV, &d_qkv.rows)?;
                self.timed(Part::Elementwise, || {
                    self.norm
                        .forward(&x, None, &norm.weight, None, &normed, norm.eps)
                })?;
                self.accumulate_linear(pass, index, QKV, &normed, &low, &d_qkv.rows, &dlow)?;
            }
            return Ok(None);
        }
        let below = self.back(pass, index, QKV, &d_qkv)?;
        self.back_through_update(pass, index, QKV, &below.base, &below.dlow)?;
        let dx = Operand {
            rows: dx.rows,
            largest: self.largest(&x)?,
        };
        self.timed(Part::Elementwise, || {
            let (residual, normed) = (Some(&dx.rows), Some(&normed));
            let (weight, largest) = (&norm.weight, dx.largest.as_ref());
            let (base, dx) = (&below.base, &dx.rows);
            self.norm
                .backward(&x, weight, base, residual, dx, normed, largest, norm.eps)
        })?;
        self.accumulate_linear(pass, index, QKV, &normed, &low, &d_qkv.rows, &below.dlow)?;
        Ok(Some(dx))
    }

    /// What the gated activation is made from where layers are rounded.
    fn gate_up<'a>(
        &'a self,
        index: usize,
        rows: &'a Tensor,
        low: &'a Option<Tensor>,
    ) -> Option<(&'a Rounding, GateUp<'a>)> {
        let weight = self.layers[index][GATE_UP].rounded()?;
        let operands = GateUp {
            rows,
            low: low.as_ref(),
            b: &weight.b,
        };
        Some((self.rounding.as_ref()?, operands))
    }

    /// Adds the gradient through the update to that through the frozen weight.
    fn back_through_update(
        &self,
        pass: &Pass,
        index: usize,
        place: usize,
        base: &Tensor,
        dlow: &Tensor,
    ) -> Result<(), LmError> {
        let lora = &self.layers[index][place].lora;
        if lora.is_empty() {
            return Ok(());
        }
        self.timed(Part::Lora, || {
            lora.up(base, dlow, base, self.mask(pass, index, place))
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
