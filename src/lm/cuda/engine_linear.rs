//! One linear layer forward and backward: the frozen weight and the update of the adapter.

use tch::{Kind, Tensor};

use super::Part;
use super::e4m3::Rows;
use super::engine::{Pass, TrainEngine};
use super::lora_down::Rounded;
use super::rounded::Forward;
use crate::lm::LmError;

/// The fused linear layers by their place in a layer.
pub(super) const QKV: usize = 0;
pub(super) const O: usize = 1;
pub(super) const GATE_UP: usize = 2;
pub(super) const DOWN: usize = 3;

/// Rounded layers that multiply in bf16 on the way forward: those whose output goes straight into the residual stream,
/// where its rounding stays for all layers above. They are a third of the products; without them the loss of a small model
/// is nearer to that in bf16.
pub(super) const PLAIN_FORWARD: &[usize] = &[O, DOWN];

/// What a linear layer multiplies: its input, or the gradient of its output.
pub(super) struct Operand {
    /// bf16 [T, n]. An input may have room for its low columns, which then lie behind the others.
    pub(super) rows: Tensor,
    /// f32 [T]: the largest magnitude of each row, where whatever made the rows has left it for their rounding.
    pub(super) largest: Option<Tensor>,
}

/// Gradients below a linear layer.
pub(super) struct Below {
    /// [T, in]: of its input, through the frozen weight alone.
    pub(super) base: Tensor,
    /// [T, low]: of what the update multiplies with B; no columns without an update.
    pub(super) dlow: Tensor,
}

impl TrainEngine {
    /// Room for a linear layer's input, [T, in], with its low columns where one product takes both.
    pub(super) fn input(
        &self,
        like: &Tensor,
        index: usize,
        place: usize,
    ) -> Result<Tensor, LmError> {
        let linear = &self.layers[index][place];
        let low = match linear.rounded() {
            None => linear.lora.shape().low(),
            Some(_) => 0,
        };
        let columns = linear.lora.shape().in_features + low;
        empty(like.size()[0], columns, like)
    }

    /// Room for the largest magnitudes of rows, zeros, where layers are rounded.
    pub(super) fn largest(&self, like: &Tensor) -> Result<Option<Tensor>, LmError> {
        let room = || Tensor::f_zeros([like.size()[0]], (Kind::Float, like.device()));
        Ok(self.rounding.is_some().then(room).transpose()?)
    }

    /// The layer's output and x · Aᵀ, which a backward pass needs. In a rounded layer of gate and up the output misses the
    /// update, which `swiglu_update.cu` adds.
    pub(super) fn linear(
        &self,
        pass: &Pass,
        index: usize,
        place: usize,
        input: &Operand,
    ) -> Result<(Tensor, Option<Tensor>), LmError> {
        let linear = &self.layers[index][place];
        let lora = &linear.lora;
        let inner = lora.shape().in_features;
        if let Some(weight) = linear.rounded() {
            let (y, low) = match &weight.forward {
                Forward::Plain(plain) => {
                    let y = self.timed(Part::Gemm, || input.rows.f_matmul(&plain.tr()))?;
                    (y, self.low(pass, index, place, &input.rows)?)
                }
                Forward::Rounded(forward) => {
                    let (rows, low) = self.round(lora.shape().low(), input, |low, rounded| {
                        let mask = self.mask(pass, index, place);
                        lora.down(&input.rows, low, None, mask, rounded)
                    })?;
                    (self.timed(Part::Gemm, || rows.multiply(forward))?, low)
                }
            };
            if let Some(low) = low.as_ref().filter(|_| place != GATE_UP) {
                let _ = self.timed(Part::Lora, || {
                    y.shallow_clone().f_addmm_(low, &weight.b.f_tr()?)
                })?;
            }
            return Ok((y, low));
        }
        let weight = self.weight(pass, index, place)?;
        if input.rows.size()[1] == weight.size()[1] {
            let low = self.low(pass, index, place, &input.rows)?;
            let y = self.timed(Part::Gemm, || {
                self.gemm.multiply(&input.rows, &weight, true)
            })?;
            return Ok((y, low));
        }
        // Without room for the low columns the update is a product of its own.
        let y = self.timed(Part::Gemm, || {
            let frozen = weight.f_narrow(1, 0, inner)?;
            self.gemm.multiply(&input.rows, &frozen, true)
        })?;
        let low = self.low(pass, index, place, &input.rows)?;
        if let Some(low) = &low {
            let _ = self.timed(Part::Lora, || {
                let b = lora.low_of(&weight);
                y.shallow_clone().f_addmm_(low, &b.tr())
            })?;
        }
        Ok((y, low))
    }

    /// x · Aᵀ, or into the low columns of the input where it has room for them, and then only returned where a backward pass
    /// follows.
    pub(super) fn low(
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
        let (inner, room) = (lora.shape().in_features, input.size()[1]);
        let alone = || empty(input.size()[0], lora.shape().low(), input);
        let mask = self.mask(pass, index, place);
        self.timed(Part::Lora, || {
            if room == inner {
                let low = alone()?;
                lora.down(input, &low, None, mask, None)?;
                return Ok(Some(low));
            }
            let saved = pass.gradient.then(alone).transpose()?;
            let front = input.f_narrow(1, 0, inner)?;
            lora.down(&front, &lora.low_of(input), saved.as_ref(), mask, None)?;
            Ok(saved)
        })
    }

    /// dy · [W | B].
    pub(super) fn back(
        &self,
        pass: &Pass,
        index: usize,
        place: usize,
        dy: &Operand,
    ) -> Result<Below, LmError> {
        let linear = &self.layers[index][place];
        let lora = &linear.lora;
        let Some(weight) = linear.rounded() else {
            let weight = self.weight(pass, index, place)?;
            let both = self.timed(Part::Gemm, || self.gemm.multiply(&dy.rows, &weight, false))?;
            return Ok(Below {
                base: both.f_narrow(1, 0, lora.shape().in_features)?,
                dlow: lora.low_of(&both),
            });
        };
        let (rows, dlow) = self.round(lora.shape().low(), dy, |dlow, rounded| {
            lora.down_gradient(&dy.rows, &weight.bt, dlow, rounded)
        })?;
        Ok(Below {
            base: self.timed(Part::Gemm, || rows.multiply(&weight.backward))?,
            dlow: match dlow {
                Some(dlow) => dlow,
                None => empty(dy.rows.size()[0], 0, &dy.rows)?,
            },
        })
    }

    /// dy · B alone, [T, low].
    pub(super) fn back_low(
        &self,
        pass: &Pass,
        index: usize,
        place: usize,
        dy: &Tensor,
    ) -> Result<Tensor, LmError> {
        let linear = &self.layers[index][place];
        if let Some(weight) = linear.rounded() {
            let dlow = empty(dy.size()[0], linear.lora.shape().low(), dy)?;
            self.timed(Part::Lora, || {
                linear.lora.down_gradient(dy, &weight.bt, &dlow, None)
            })?;
            return Ok(dlow);
        }
        let weight = self.weight(pass, index, place)?;
        self.timed(
            Part::Gemm,
            || Ok(dy.f_matmul(&linear.lora.low_of(&weight))?),
        )
    }

    /// Rounds an operand while `down` reads it for its `low` columns, where there are any and the rows' magnitudes are
    /// known; by itself else.
    fn round(
        &self,
        low: i64,
        operand: &Operand,
        down: impl Fn(&Tensor, Option<Rounded<'_>>) -> Result<(), LmError>,
    ) -> Result<(Rows, Option<Tensor>), LmError> {
        let [tokens, width] = operand.rows.size()[..] else {
            unreachable!("operands have two dimensions")
        };
        let rows = Rows::empty(tokens, width, operand.rows.device())?;
        let rounding = self.rounding.as_ref();
        let alone = || {
            let e4m3 = &rounding.expect("made for rounded weights").e4m3;
            self.timed(Part::Elementwise, || e4m3.round(&operand.rows, &rows))
        };
        if low == 0 {
            alone()?;
            return Ok((rows, None));
        }
        let product = empty(tokens, low, &operand.rows)?;
        let rounded = operand.largest.as_ref().map(|largest| Rounded {
            largest,
            rows: &rows,
        });
        if rounded.is_none() {
            alone()?;
        }
        self.timed(Part::Lora, || down(&product, rounded))?;
        Ok((rows, Some(product)))
    }

    /// Adds the gradient of A for the layer's `input` and the gradient of its low columns.
    pub(super) fn accumulate_a(
        &self,
        pass: &Pass,
        index: usize,
        place: usize,
        input: &Tensor,
        dlow: &Tensor,
    ) -> Result<(), LmError> {
        let lora = &self.layers[index][place].lora;
        self.timed(Part::Lora, || {
            lora.gradient_of_a(input, dlow, self.mask(pass, index, place), &self.arena)
        })
    }

    /// Adds the gradient of B for the layer's low columns and the gradient of its output.
    pub(super) fn accumulate_b(
        &self,
        index: usize,
        place: usize,
        low: Option<&Tensor>,
        dy: &Tensor,
    ) -> Result<(), LmError> {
        let Some(low) = low else {
            return Ok(());
        };
        let lora = &self.layers[index][place].lora;
        self.timed(Part::Lora, || lora.gradient_of_b(low, dy, &self.arena))
    }
}

pub(super) fn empty(rows: i64, columns: i64, like: &Tensor) -> Result<Tensor, LmError> {
    Ok(Tensor::f_empty(
        [rows, columns],
        (Kind::BFloat16, like.device()),
    )?)
}
