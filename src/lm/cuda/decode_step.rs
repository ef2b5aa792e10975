//! One decoding step of a whole model: a new token for every row, all of it on the device and over memory that stays where
//! it is, so that it can be recorded once and replayed.

use tch::{Kind, Tensor};

use super::decode_attention::DecodeAttention;
use super::e4m3::Rows;
use super::few_rows::FewRows;
use super::forward::{FusedForward, head_norm};
use super::rotate::CacheRows;
use super::sampler::Sampler;
use super::slots::Slots;
use crate::lm::decoder::RmsNorm;
use crate::lm::{Decoder, Linear, LmError, RotaryTable};

/// The memory of a step of at most `rows` rows.
pub struct DecodeStep {
    attention: DecodeAttention,
    few_rows: FewRows,
    /// Entries of all positions.
    rotary: RotaryTable,
    /// i32 [rows]: the slot and the position of each row.
    slots: Tensor,
    positions: Tensor,
    /// [rows, hidden]: the residual stream, what is added to it next, and its norm.
    x: Tensor,
    y: Tensor,
    normed: Tensor,
    qkv: Tensor,
    attended: Tensor,
    gate_up: Tensor,
    gated: Tensor,
    /// [rows, rank] of the widest adapter; None without one.
    low: Option<Tensor>,
    /// Rounded inputs of the linear layers, by their width.
    rounded: Vec<Rows>,
    logits: Tensor,
}

/// Whether every layer of a model can be computed by a step: dense or e4m3 weights, adapters without DoRA.
pub fn decodes(decoder: &Decoder, fused: &FusedForward) -> bool {
    let group = fused.heads.query / fused.heads.key_value;
    let shapes = fused.heads.query % fused.heads.key_value == 0
        && group <= 8
        && decoder.vocab() % 8 == 0
        && decoder.layers()[0].gate_up.out_features() % 16 == 0;
    let linears = decoder.layers().iter().flat_map(|layer| layer.linears());
    shapes
        && linears.chain([decoder.head()]).all(|linear| {
            let weight = linear.dense().is_some() || fused.multiplies(linear).is_some();
            let dora = linear.update().is_some_and(|update| update.dora.is_some());
            weight && !dora
        })
}

impl DecodeStep {
    /// `capacity`: tokens of a slot.
    ///
    /// # Errors
    /// [`LmError::Kernel`]; out of memory.
    pub fn new(
        decoder: &Decoder,
        fused: &FusedForward,
        rows: i64,
        capacity: i64,
    ) -> Result<Self, LmError> {
        let device = decoder.placement().device;
        let layer = &decoder.layers()[0];
        let hidden = decoder.embedding.size()[1];
        let matrix = |width: i64| Tensor::f_empty([rows, width], (Kind::BFloat16, device));
        let index = || Tensor::f_zeros([rows], (Kind::Int, device));
        let linears = || decoder.layers().iter().flat_map(|layer| layer.linears());
        let rank = linears()
            .filter_map(|linear| linear.update())
            .map(|update| update.a.size()[0])
            .max();
        let mut widths: Vec<i64> = linears()
            .filter(|linear| fused.multiplies(linear).is_some())
            .map(Linear::in_features)
            .collect();
        widths.sort_unstable();
        widths.dedup();
        let all = Tensor::f_arange(capacity, (Kind::Int64, device))?;
        Ok(Self {
            attention: DecodeAttention::new(fused.heads, rows, device)?,
            few_rows: FewRows::new(device)?,
            rotary: decoder.rotary(&all),
            slots: index()?,
            positions: index()?,
            x: matrix(hidden)?,
            y: matrix(hidden)?,
            normed: matrix(hidden)?,
            qkv: matrix(layer.qkv.out_features())?,
            attended: matrix(layer.o.in_features())?,
            gate_up: matrix(layer.gate_up.out_features())?,
            gated: matrix(layer.down.in_features())?,
            low: rank.map(matrix).transpose()?,
            rounded: widths
                .into_iter()
                .map(|width| Rows::empty(rows, width, device))
                .collect::<Result<_, _>>()?,
            logits: matrix(decoder.vocab())?,
        })
    }

    /// Room for the logits of `rows` rows.
    pub fn logits(&self, rows: i64) -> Tensor {
        self.logits.narrow(0, 0, rows)
    }

    /// Names the slots of the first rows.
    ///
    /// # Errors
    /// What libtorch refuses.
    pub fn set_slots(&self, slots: &[i32]) -> Result<(), LmError> {
        self.slots
            .narrow(0, 0, slots.len() as i64)
            .copy_(&Tensor::from_slice(slots));
        Ok(())
    }

    /// Adds a token to the slots of the first `rows` rows; slots that are done are passed over.
    ///
    /// # Errors
    /// [`LmError::Kernel`], or what libtorch refuses.
    pub fn run(
        &self,
        decoder: &Decoder,
        fused: &FusedForward,
        sampler: &Sampler,
        slots: &Slots,
        layers: &[(Tensor, Tensor)],
        rows: i64,
    ) -> Result<(), LmError> {
        let first = |x: &Tensor| x.narrow(0, 0, rows);
        let (x, y, normed) = (first(&self.x), first(&self.y), first(&self.normed));
        let (qkv, attended) = (first(&self.qkv), first(&self.attended));
        let (gate_up, gated) = (first(&self.gate_up), first(&self.gated));
        let (index, positions) = (first(&self.slots), first(&self.positions));
        let cache = CacheRows {
            layers,
            slots: &index,
            positions: &positions,
        };
        sampler.embed_newest(&decoder.embedding, slots, &index, &positions, &x)?;
        let mut added = None;
        for (number, layer) in decoder.layers().iter().enumerate() {
            let through = Through {
                step: self,
                fused,
                rows,
            };
            through.norm(&x, added, &layer.input_norm, &normed, &layer.qkv, &qkv)?;
            let (weight, eps) = head_norm(layer);
            fused.rotate.apply(
                &qkv,
                weight,
                &self.rotary,
                true,
                Some((number, &cache)),
                eps,
            )?;
            self.attention.forward(&qkv, number, &cache, &attended)?;
            through.linear(&attended, &layer.o, &y)?;
            through.norm(
                &x,
                Some(&y),
                &layer.post_norm,
                &normed,
                &layer.gate_up,
                &gate_up,
            )?;
            through.gate(&gate_up, &gated, &layer.down, &y)?;
            added = Some(&y);
        }
        let norm = &decoder.norm;
        fused
            .norm
            .forward(&x, added, &norm.weight, Some(&x), &normed, norm.eps)?;
        let logits = self.logits(rows);
        Through {
            step: self,
            fused,
            rows,
        }
        .linear(&normed, decoder.head(), &logits)?;
        sampler.choose(slots, &index, &logits)
    }
}

/// How inputs go through linear layers into memory that is there.
struct Through<'a> {
    step: &'a DecodeStep,
    fused: &'a FusedForward,
    rows: i64,
}

impl Through<'_> {
    /// x += y; out = linear(norm(x)).
    fn norm(
        &self,
        x: &Tensor,
        y: Option<&Tensor>,
        norm: &RmsNorm,
        normed: &Tensor,
        linear: &Linear,
        out: &Tensor,
    ) -> Result<(), LmError> {
        if let Some((e4m3, weight)) = self.fused.rounds(linear) {
            let rows = self.rounded(linear);
            e4m3.add_norm(x, y, &norm.weight, &rows, norm.eps)?;
            return rows.multiply_into(weight, out);
        }
        self.fused
            .norm
            .forward(x, y, &norm.weight, Some(x), normed, norm.eps)?;
        self.linear(normed, linear, out)
    }

    /// out = linear(silu(gate) · up).
    fn gate(
        &self,
        gate_up: &Tensor,
        gated: &Tensor,
        linear: &Linear,
        out: &Tensor,
    ) -> Result<(), LmError> {
        if let Some((e4m3, weight)) = self.fused.rounds(linear) {
            let rows = self.rounded(linear);
            e4m3.swiglu(gate_up, &rows)?;
            return rows.multiply_into(weight, out);
        }
        self.fused.swiglu.forward(gate_up, gated)?;
        self.linear(gated, linear, out)
    }

    fn linear(&self, x: &Tensor, linear: &Linear, out: &Tensor) -> Result<(), LmError> {
        match (self.fused.multiplies(linear), linear.dense()) {
            (Some((e4m3, weight)), _) => {
                let rows = self.rounded(linear);
                e4m3.round(x, &rows)?;
                rows.multiply_into(weight, out)?;
            }
            (None, Some(weight)) => {
                if !self.step.few_rows.multiply(x, weight, out)? {
                    let _ = x.f_mm_out(out, &weight.tr())?;
                }
            }
            (None, None) => unreachable!("`decodes` asks for weights that are not packed"),
        }
        if let (Some(update), Some(low)) = (linear.update(), &self.step.low) {
            // The first elements of the memory: rows of another adapter are wider.
            let rank = update.a.size()[0];
            let low = low
                .view([-1])
                .narrow(0, 0, self.rows * rank)
                .view([self.rows, rank]);
            let _ = x.f_mm_out(&low, &update.a.tr())?;
            let _ = out.shallow_clone().f_addmm_(&low, &update.b.tr())?;
        }
        Ok(())
    }

    fn rounded(&self, linear: &Linear) -> Rows {
        self.step
            .rounded
            .iter()
            .find(|rows| rows.codes.size()[1] == linear.in_features())
            .expect("there is room for every width")
            .first(self.rows)
    }
}
