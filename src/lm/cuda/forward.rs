//! A forward pass without gradient over packed rows: few launches a layer, nothing of size T · T or T · vocab.

use tch::{Kind, Tensor};

use super::e4m3::{E4m3, Rows};
use super::norm::Norm;
use super::rope::Heads;
use super::rotate::{CacheRows, Rotate};
use super::swiglu::Swiglu;
use crate::lm::decoder::{Layer, RmsNorm};
use crate::lm::{Decoder, Linear, LmError};

/// `attend(layer, q [T, heads, D], k, v [T, kv_heads, D])` returns [T, heads · D].
pub type Attend<'a> = dyn FnMut(usize, &Tensor, &Tensor, &Tensor) -> Result<Tensor, LmError> + 'a;

/// The kernels of one model on one GPU.
pub struct FusedForward {
    pub(super) norm: Norm,
    pub(super) rotate: Rotate,
    pub(super) swiglu: Swiglu,
    /// Where linear layers are multiplied in e4m3.
    pub(super) e4m3: Option<E4m3>,
    pub(super) heads: Heads,
}

impl FusedForward {
    /// None where the model is on no GPU, not in bf16, or of a shape that the kernels do not take; the plain operations
    /// then do the work. A kernel that does not compile on this GPU is reported once.
    pub fn of(decoder: &Decoder) -> Option<Self> {
        if !decoder.placement().flash() {
            return None;
        }
        match Self::new(decoder) {
            Ok(fused) => Some(fused),
            Err(error) => {
                tracing::warn!("{error}; inference goes on without fused kernels");
                None
            }
        }
    }

    fn new(decoder: &Decoder) -> Result<Self, LmError> {
        let device = decoder.placement().device;
        let layer = &decoder.layers()[0];
        let heads = Heads {
            query: layer.heads,
            key_value: layer.kv_heads,
            dim: layer.head_dim,
        };
        let rounded = layer.linears().iter().any(|linear| linear.fp8().is_some());
        Ok(Self {
            norm: Norm::new(decoder.embedding.size()[1], device)?,
            rotate: Rotate::new(heads, layer.qk_norm.is_some(), device)?,
            swiglu: Swiglu::new(device)?,
            e4m3: match rounded {
                true => Some(E4m3::new(device)?),
                false => None,
            },
            heads,
        })
    }

    /// Hidden states after the final norm of the rows `keep` (i64 [n]): [n, hidden]. The keys and values of all rows also
    /// go into `cache`.
    ///
    /// # Errors
    /// [`LmError::Kernel`], what libtorch refuses, and what `attend` returns.
    pub fn forward(
        &self,
        decoder: &Decoder,
        ids: &Tensor,
        positions: &Tensor,
        keep: &Tensor,
        cache: Option<&CacheRows<'_>>,
        attend: &mut Attend<'_>,
    ) -> Result<Tensor, LmError> {
        let Heads {
            query,
            key_value,
            dim,
        } = self.heads;
        let rotary = decoder.rotary(positions);
        let mut x = decoder.embed(ids);
        // What the last layer adds to x: added where x is read next.
        let mut y = None;
        for (index, layer) in decoder.layers().iter().enumerate() {
            let qkv = self.normed(&x, y.as_ref(), &layer.input_norm, &layer.qkv)?;
            let (weight, eps) = head_norm(layer);
            let cache = cache.map(|cache| (index, cache));
            self.rotate
                .apply(&qkv, weight, &rotary, false, cache, eps)?;
            let qkv = qkv.f_view([-1, self.heads.all(), dim])?;
            let mut attended = attend(
                index,
                &qkv.f_narrow(1, 0, query)?,
                &qkv.f_narrow(1, query, key_value)?,
                &qkv.f_narrow(1, query + key_value, key_value)?,
            )?;
            if index + 1 == decoder.layers().len() {
                x = x.f_index_select(0, keep)?;
                attended = attended.f_index_select(0, keep)?;
            }
            let projected = self.linear(&attended, &layer.o)?;
            let gate_up = self.normed(&x, Some(&projected), &layer.post_norm, &layer.gate_up)?;
            y = Some(self.gated(&gate_up, &layer.down)?);
        }
        let out = Tensor::f_empty_like(&x)?;
        let norm = &decoder.norm;
        self.norm
            .forward(&x, y.as_ref(), &norm.weight, Some(&x), &out, norm.eps)?;
        Ok(out)
    }

    /// x += y; norm(x) through `linear`.
    fn normed(
        &self,
        x: &Tensor,
        y: Option<&Tensor>,
        norm: &RmsNorm,
        linear: &Linear,
    ) -> Result<Tensor, LmError> {
        if let Some((e4m3, weight)) = self.rounds(linear) {
            let rows = Rows::empty(x.size()[0], linear.in_features(), x.device())?;
            e4m3.add_norm(x, y, &norm.weight, &rows, norm.eps)?;
            return rows.multiply(weight);
        }
        let out = Tensor::f_empty_like(x)?;
        self.norm
            .forward(x, y, &norm.weight, Some(x), &out, norm.eps)?;
        self.linear(&out, linear)
    }

    /// The gated activation through `linear`.
    fn gated(&self, gate_up: &Tensor, linear: &Linear) -> Result<Tensor, LmError> {
        let shape = [gate_up.size()[0], linear.in_features()];
        if let Some((e4m3, weight)) = self.rounds(linear) {
            let rows = Rows::empty(shape[0], shape[1], gate_up.device())?;
            e4m3.swiglu(gate_up, &rows)?;
            return rows.multiply(weight);
        }
        let out = Tensor::f_empty(shape, (Kind::BFloat16, gate_up.device()))?;
        self.swiglu.forward(gate_up, &out)?;
        self.linear(&out, linear)
    }

    fn linear(&self, x: &Tensor, linear: &Linear) -> Result<Tensor, LmError> {
        let Some((e4m3, weight)) = self.multiplies(linear) else {
            return Ok(linear.forward(x));
        };
        let rows = Rows::empty(x.size()[0], linear.in_features(), x.device())?;
        e4m3.round(x, &rows)?;
        let y = rows.multiply(weight)?;
        Ok(match linear.update() {
            None => y,
            Some(update) => update.apply(y, x),
        })
    }

    /// The rounding kernels and the weight, where `linear` is multiplied in e4m3.
    pub(super) fn multiplies<'a>(&self, linear: &'a Linear) -> Option<(&E4m3, &'a crate::lm::Fp8)> {
        let fits = E4m3::takes(linear.in_features()) && linear.out_features() % 16 == 0;
        self.e4m3.as_ref().zip(linear.fp8()).filter(|_| fits)
    }

    /// As [`Self::multiplies`], where in addition no adapter needs the input unrounded.
    pub(super) fn rounds<'a>(&self, linear: &'a Linear) -> Option<(&E4m3, &'a crate::lm::Fp8)> {
        self.multiplies(linear)
            .filter(|_| linear.update().is_none())
    }
}

/// The weight and the epsilon of a layer's head norm.
pub(super) fn head_norm(layer: &Layer) -> (Option<&Tensor>, f64) {
    match &layer.qk_norm {
        Some(norm) => (Some(&norm.weight), norm.eps),
        None => (None, 0.0),
    }
}
