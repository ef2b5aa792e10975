//! Causal attention over packed sequences, with gradient or without: cuDNN where all have one length, flash attention
//! otherwise.

use tch::{Device, Kind, Tensor};

use super::native::{Attention, cudnn_attention, deterministic, flash_attention};
use crate::lm::LmError;

/// How the tokens of a batch fall into sequences.
pub struct Sequences {
    /// i32 [B + 1]: boundaries, from 0 to T.
    cumulative: Tensor,
    count: i64,
    longest: i64,
    tokens: i64,
    deterministic: bool,
}

/// Attention between its forward and its backward pass.
pub struct Attended {
    attention: Attention,
    equal: bool,
}

impl Sequences {
    /// `boundaries`: B + 1 numbers from 0 to T. `deterministic`: gradients have the same
    /// bits every time.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(boundaries: &[i64], device: Device, deterministic: bool) -> Result<Self, LmError> {
        let longest = boundaries.windows(2).map(|pair| pair[1] - pair[0]).max();
        Ok(Self {
            cumulative: Tensor::from_slice(boundaries)
                .f_to_kind(Kind::Int)?
                .f_to_device(device)?,
            count: boundaries.len() as i64 - 1,
            longest: longest.unwrap_or(0),
            tokens: boundaries.last().copied().unwrap_or(0),
            deterministic,
        })
    }

    /// `q`: [T, heads, D]; `k`, `v`: [T, kv_heads, D], of any strides but that of D. `gradient`: a backward pass follows.
    ///
    /// # Errors
    /// What libtorch refuses, out of memory included.
    pub fn forward(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        gradient: bool,
    ) -> Result<Attended, LmError> {
        let equal = self.cudnn_can(q);
        let attention = if equal {
            let [q, k, v] = [q, k, v].map(|x| self.batched(x));
            cudnn_attention([&q, &k, &v], gradient)?
        } else {
            let cumulative = [&self.cumulative, &self.cumulative];
            flash_attention([q, k, v], cumulative, [self.longest; 2], true)?
        };
        Ok(Attended { attention, equal })
    }

    /// Gradients of q, k and v, each [T, its heads, D], for `gradient` [T, heads, D] of the output.
    ///
    /// # Errors
    /// What libtorch refuses, out of memory included.
    pub fn backward(
        &self,
        attended: &Attended,
        gradient: &Tensor,
        [q, k, v]: [&Tensor; 3],
    ) -> Result<[Tensor; 3], LmError> {
        let Attention {
            output,
            logsumexp,
            random,
        } = &attended.attention;
        deterministic(self.deterministic, || {
            if attended.equal {
                let none = Tensor::new();
                let [gradient, q, k, v] = [gradient, q, k, v].map(|x| self.batched(x));
                let (dq, dk, dv) = Tensor::f_internal_cudnn_attention_backward(
                    &gradient,
                    &q,
                    &k,
                    &v,
                    output,
                    logsumexp,
                    &random[0],
                    &random[1],
                    &none,
                    &none,
                    &none,
                    self.longest,
                    self.longest,
                    0.0,
                    true,
                    None,
                )?;
                return Ok([dq, dk, dv].map(|x| self.flat(&x)));
            }
            let (dq, dk, dv) = Tensor::f_internal_flash_attention_backward(
                gradient,
                q,
                k,
                v,
                output,
                logsumexp,
                &self.cumulative,
                &self.cumulative,
                self.longest,
                self.longest,
                0.0,
                true,
                &random[0],
                &random[1],
                None,
                None,
                None,
            )?;
            Ok([dq, dk, dv])
        })
    }

    /// [T, heads · D], the output of attention.
    pub fn output(&self, attended: &Attended) -> Tensor {
        let output = match attended.equal {
            true => self.flat(&attended.attention.output),
            false => attended.attention.output.shallow_clone(),
        };
        output.reshape([self.tokens, -1])
    }

    /// cuDNN builds a plan for each batch size and length, which pays where they repeat. The bits of its gradients differ
    /// between runs at times, also where libtorch asks it for deterministic ones.
    fn cudnn_can(&self, q: &Tensor) -> bool {
        let dim = q.size()[2];
        !self.deterministic
            && self.count * self.longest == self.tokens
            && self.longest % 64 == 0
            && (dim == 64 || dim == 128)
    }

    /// [T, heads, D] → [B, heads, S, D], a view.
    fn batched(&self, x: &Tensor) -> Tensor {
        let [_, heads, dim] = x.size()[..] else {
            unreachable!("heads are a dimension of their own")
        };
        x.reshape([self.count, self.longest, heads, dim])
            .transpose(1, 2)
    }

    /// The inverse of [`Sequences::batched`].
    fn flat(&self, x: &Tensor) -> Tensor {
        let (heads, dim) = (x.size()[1], x.size()[3]);
        x.transpose(1, 2).reshape([self.tokens, heads, dim])
    }
}
