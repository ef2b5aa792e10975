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
        let tokens = x.size()[0];
        let d_gate_up = self.back_through_mlp(pass, index, &dx, gate_up, &low)?;
        let dx = self.back_through_norm(pass, index, GATE_UP, &x2, &d_gate_up, dx)?;
        if self.swiglu_grad.is_none() {
            self.accumulate_b(index, GATE_UP, low[GATE_UP].as_ref(), &d_gate_up.rows)?;
        }
        drop((d_gate_up, x2));

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
        self.accumulate_a(pass, index, O, &output, &below.dlow)?;
        self.accumulate_b(index, O, low[O].as_ref(), &dx.rows)?;
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

        self.accumulate_b(index, QKV, low[QKV].as_ref(), &d_qkv.rows)?;
        if index > 0 {
            let dx = self.back_through_norm(pass, index, QKV, &x, &d_qkv, dx)?;
            return Ok(Some(dx));
        }
        if low[QKV].is_some() {
            let dlow = self.back_low(pass, index, QKV, &d_qkv.rows)?;
            let normed = Tensor::f_empty_like(&x)?;
            let norm = &pass.decoder.layers()[index].input_norm;
            self.timed(Part::Elementwise, || {
                self.norm
                    .forward(&x, None, &norm.weight, None, &normed, norm.eps)
            })?;
            self.accumulate_a(pass, index, QKV, &normed, &dlow)?;
        }
        Ok(None)
    }

    /// From the gradient of the last linear layer's output to that of gate and up, which takes their place; adds the
    /// gradients of the last layer's factors, and where a kernel makes them in passing those of gate's and up's B.
    fn back_through_mlp(
        &self,
        pass: &Pass,
        index: usize,
        dx: &Operand,
        gate_up: Tensor,
        low: &[Option<Tensor>; 4],
    ) -> Result<Operand, LmError> {
        let below = self.back(pass, index, DOWN, dx)?;
        let [_, _, above, layer] = &self.layers[index];
        let gradients = [&below.base, &below.dlow];
        let mask = self.mask(pass, index, DOWN);
        let mut largest = None;
        if let (Some(fused), Some(low)) = (&self.swiglu_grad, &low[GATE_UP]) {
            let layers = [&above.lora, &layer.lora];
            self.timed(Part::Elementwise, || {
                fused.run(layers, gradients, &gate_up, low, mask, &self.arena)
            })?;
        } else {
            let gated = empty(dx.rows.size()[0], layer.lora.shape().in_features, &dx.rows)?;
            largest = self.largest(&dx.rows)?;
            let lora = &layer.lora;
            self.timed(Part::Elementwise, || {
                match (self.gate_up(index, &gate_up, &low[GATE_UP]), &largest) {
                    (Some((rounding, operands)), Some(largest)) => {
                        rounding.swiglu_backward(lora, gradients, operands, &gated, largest, mask)
                    }
                    _ => lora.swiglu_backward(gradients, &gate_up, &gate_up, &gated, mask),
                }
            })?;
            self.accumulate_a(pass, index, DOWN, &gated, &below.dlow)?;
        }
        self.accumulate_b(index, DOWN, low[DOWN].as_ref(), &dx.rows)?;
        Ok(Operand {
            rows: gate_up,
            largest,
        })
    }

    /// From the gradient `dy` of the linear layer behind a norm to that of the norm's input `x`, to which it is added:
    /// `dx`, which is consumed. Adds the gradient of A.
    fn back_through_norm(
        &self,
        pass: &Pass,
        index: usize,
        place: usize,
        x: &Tensor,
        dy: &Operand,
        dx: Operand,
    ) -> Result<Operand, LmError> {
        let layer = &pass.decoder.layers()[index];
        let norm = match place {
            QKV => &layer.input_norm,
            _ => &layer.post_norm,
        };
        let below = self.back(pass, index, place, dy)?;
        self.back_through_update(pass, index, place, &below.base, &below.dlow)?;
        let normed = Tensor::f_empty_like(x)?;
        let dx = Operand {
            rows: dx.rows,
            largest: self.largest(x)?,
        };
        self.timed(Part::Elementwise, || {
            let (residual, normed) = (Some(&dx.rows), Some(&normed));
            let (weight, largest) = (&norm.weight, dx.largest.as_ref());
            let (base, dx) = (&below.base, &dx.rows);
            self.norm
                .backward(x, weight, base, residual, dx, normed, largest, norm.eps)
        })?;
        self.accumulate_a(pass, index, place, &normed, &below.dlow)?;
        Ok(dx)
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
