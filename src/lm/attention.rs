//! Scaled dot-product attention over packed sequences.

use tch::{Kind, Tensor};

use super::cpu_attention::{self, Seen};
use super::{LmError, Placement, cuda};

/// Causal self-attention within each sequence of a packed batch; nothing crosses a boundary.
///
/// `q`: [T, heads, D]; `k`, `v`: [T, kv_heads, D]; `cu_seqlens`: the B + 1 sequence boundaries, from 0 to T.
/// Returns [T, heads · D].
pub fn causal_varlen(q: &Tensor, k: &Tensor, v: &Tensor, cu_seqlens: &[i64]) -> Tensor {
    let [total, heads, dim] = q.size()[..] else {
        unreachable!("q has three dimensions")
    };
    let outputs: Vec<Tensor> = cu_seqlens
        .windows(2)
        .filter(|bounds| bounds[1] > bounds[0])
        .map(|bounds| {
            let own = |x: &Tensor| x.narrow(0, bounds[0], bounds[1] - bounds[0]);
            sequence(&own(q), &own(k), &own(v), Seen::Causal)
        })
        .collect();
    match &outputs[..] {
        [output] => output.reshape([total, heads * dim]),
        outputs => Tensor::cat(outputs, 0).reshape([total, heads * dim]),
    }
}

/// One sequence, with gradient: `q` [n, heads, D], `k` and `v` [L, kv_heads, D], n = L for [`Seen::Causal`] → [n, heads, D].
fn sequence(q: &Tensor, k: &Tensor, v: &Tensor, seen: Seen) -> Tensor {
    if let Some(output) = cpu_attention::differentiable(q, k, v, seen) {
        return output;
    }
    let (mask, causal) = match seen {
        Seen::All => (None, false),
        Seen::Causal => (None, true),
        Seen::Masked(mask) => (Some(mask), false),
    };
    let batched = |x: &Tensor| x.transpose(0, 1).unsqueeze(0);
    let (q, k, v) = (batched(q), batched(k), batched(v));
    let grouped = q.size()[1] != k.size()[1];
    Tensor::scaled_dot_product_attention(&q, &k, &v, mask, 0.0, causal, None, grouped)
        .squeeze_dim(0)
        .transpose(0, 1)
}

/// One sequence without gradient, as fast as the device can: `q` [n, heads, D], `k` and `v` [L, kv_heads, D] →
/// [n, heads · D].
///
/// # Errors
/// What libtorch refuses; no memory.
pub(super) fn infer(q: &Tensor, k: &Tensor, v: &Tensor, seen: Seen) -> Result<Tensor, LmError> {
    let (queries, keys) = (q.size()[0], k.size()[0]);
    let output = match (cpu_attention::infer(q, k, v, seen)?, seen) {
        (Some(output), _) => output,
        (None, Seen::Causal) if queries < keys => {
            let seen = Tensor::ones([queries, keys], (Kind::Bool, q.device())).tril(keys - queries);
            let mask = Tensor::zeros([queries, keys], (q.kind(), q.device()))
                .masked_fill(&seen.logical_not(), f64::NEG_INFINITY);
            sequence(q, k, v, Seen::Masked(&mask))
        }
        (None, seen) => sequence(q, k, v, seen),
    };
    Ok(output.f_reshape([queries, -1])?)
}

/// One new token per row against the row's cache.
///
/// `q`: [B, heads, D]; `k`, `v`: [B, kv_heads, L, D]; `mask`: [B, 1, 1, L], 0 or −∞. Returns [B, heads · D].
pub(super) fn decode(q: &Tensor, k: &Tensor, v: &Tensor, mask: &Tensor) -> Tensor {
    let [rows, heads, dim] = q.size()[..] else {
        unreachable!("q has three dimensions")
    };
    let kv_heads = k.size()[1];
    // The query heads that share a key head become its query positions: nothing is repeated.
    let q = q.reshape([rows, kv_heads, heads / kv_heads, dim]);
    Tensor::scaled_dot_product_attention(&q, k, v, Some(mask), 0.0, false, None, false)
        .reshape([rows, heads * dim])
}

/// Attention over packed sequences whose keys may begin before their queries: the queries of a sequence are its last
/// positions. Without gradient.
pub(super) struct Varlen {
    /// Tokens of each sequence: queries and keys.
    lengths: Vec<(i64, i64)>,
    kernel: VarlenKernel,
}

enum VarlenKernel {
    /// Plain attention, sequence by sequence.
    None,
    /// All sequences begin with their queries.
    Own(cuda::Sequences),
    /// i32 [B + 1]: the ends of the queries and of the keys.
    Longer([Tensor; 2]),
}

impl Varlen {
    /// # Errors
    /// [`LmError::Torch`] from the copy to the device.
    pub(super) fn new(
        queries: &[i64],
        keys: &[i64],
        placement: Placement,
    ) -> Result<Self, LmError> {
        Self::with_plans(queries, keys, placement, true)
    }

    /// For a few sequences of any length, whose length will not come again soon.
    ///
    /// # Errors
    /// As [`Varlen::new`].
    pub(super) fn once(lengths: &[i64], placement: Placement) -> Result<Self, LmError> {
        Self::with_plans(lengths, lengths, placement, false)
    }

    /// `plans`: whether it pays to make plans for sequences that all have one length.
    fn with_plans(
        queries: &[i64],
        keys: &[i64],
        placement: Placement,
        plans: bool,
    ) -> Result<Self, LmError> {
        let device = placement.device;
        let kernel = if !placement.flash() {
            VarlenKernel::None
        } else if queries == keys {
            VarlenKernel::Own(cuda::Sequences::new(&boundaries(queries), device, !plans)?)
        } else {
            let ends = |lengths: &[i64]| -> Result<Tensor, LmError> {
                let ends = Tensor::from_slice(&boundaries(lengths));
                Ok(ends.f_to_kind(Kind::Int)?.f_to_device(device)?)
            };
            VarlenKernel::Longer([ends(queries)?, ends(keys)?])
        };
        Ok(Self {
            lengths: queries.iter().copied().zip(keys.iter().copied()).collect(),
            kernel,
        })
    }

    /// `q`: [Tq, heads, D]; `k`, `v`: [Tk, kv_heads, D]. Returns [Tq, heads · D].
    ///
    /// # Errors
    /// What libtorch refuses.
    pub(super) fn attend(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor, LmError> {
        match &self.kernel {
            VarlenKernel::None => self.one_by_one(q, k, v),
            VarlenKernel::Own(sequences) => {
                Ok(sequences.output(&sequences.forward(q, k, v, false)?))
            }
            VarlenKernel::Longer([queries, keys]) => {
                let longest = self
                    .lengths
                    .iter()
                    .fold([0, 0], |[q, k], length| [q.max(length.0), k.max(length.1)]);
                let attention = cuda::flash_attention([q, k, v], [queries, keys], longest, true)?;
                Ok(attention.output.f_view([q.size()[0], -1])?)
            }
        }
    }

    fn one_by_one(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor, LmError> {
        let (mut first_query, mut first_key) = (0, 0);
        let outputs = self.lengths.iter().map(|&(queries, keys)| {
            let q = q.narrow(0, first_query, queries);
            let own = |x: &Tensor| x.narrow(0, first_key, keys);
            first_query += queries;
            let output = infer(&q, &own(k), &own(v), Seen::Causal);
            first_key += keys;
            output
        });
        Ok(Tensor::f_cat(&outputs.collect::<Result<Vec<_>, _>>()?, 0)?)
    }
}

/// Attention over packed sequences in which every token sees its whole sequence. Without gradient.
pub(super) enum Bidirectional {
    /// i32 [B + 1]: the boundaries; the longest sequence.
    Flash(Tensor, i64),
    /// Neighbours of one length are computed together, without padding: how many, and their length.
    Groups(Vec<(i64, i64)>),
}

impl Bidirectional {
    /// `cu_seqlens`: the B + 1 sequence boundaries, from 0 to T; `dim`: that of a head.
    ///
    /// # Errors
    /// [`LmError::Torch`] from the copy to the device.
    pub(super) fn new(cu_seqlens: &[i64], dim: i64, placement: Placement) -> Result<Self, LmError> {
        let lengths = cu_seqlens.windows(2).map(|bounds| bounds[1] - bounds[0]);
        if placement.flash() && dim % 8 == 0 && dim <= 256 {
            let boundaries = Tensor::from_slice(cu_seqlens)
                .f_to_kind(Kind::Int)?
                .f_to_device(placement.device)?;
            return Ok(Self::Flash(boundaries, lengths.max().unwrap_or(0)));
        }
        let mut groups: Vec<(i64, i64)> = Vec::new();
        for length in lengths.filter(|length| *length > 0) {
            match groups.last_mut() {
                Some((count, of)) if *of == length => *count += 1,
                _ => groups.push((1, length)),
            }
        }
        Ok(Self::Groups(groups))
    }

    /// `q`, `k`, `v`: [T, heads, D]. Returns [T, heads · D].
    ///
    /// # Errors
    /// What libtorch refuses, out of memory included.
    pub(super) fn attend(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor, LmError> {
        let [tokens, heads, dim] = q.size()[..] else {
            unreachable!("q has three dimensions")
        };
        let groups = match self {
            Self::Flash(boundaries, longest) => {
                let ends = [boundaries, boundaries];
                let attention = cuda::flash_attention([q, k, v], ends, [*longest; 2], false)?;
                return Ok(attention.output.f_view([tokens, heads * dim])?);
            }
            Self::Groups(groups) => groups,
        };
        let mut first = 0;
        let mut outputs = Vec::with_capacity(groups.len());
        for &(count, length) in groups {
            if cpu_attention::pays(&q.f_narrow(0, first, length)?) {
                for start in (first..first + count * length).step_by(length as usize) {
                    let own = |x: &Tensor| x.f_narrow(0, start, length);
                    outputs.push(infer(&own(q)?, &own(k)?, &own(v)?, Seen::All)?);
                }
                first += count * length;
                continue;
            }
            // [count · length, heads, D] → [count, heads, length, D], a view.
            let own = |x: &Tensor| -> Result<Tensor, LmError> {
                Ok(x.f_narrow(0, first, count * length)?
                    .f_unflatten(0, [count, length])?
                    .f_transpose(1, 2)?)
            };
            let output = Tensor::f_scaled_dot_product_attention::<Tensor>(
                &own(q)?,
                &own(k)?,
                &own(v)?,
                None,
                0.0,
                false,
                None,
                false,
            )?;
            outputs.push(output.f_transpose(1, 2)?.f_reshape([-1, heads * dim])?);
            first += count * length;
        }
        Ok(match &outputs[..] {
            [output] => output.shallow_clone(),
            outputs => Tensor::f_cat(outputs, 0)?,
        })
    }
}

/// 0 and the running sums of `lengths`.
fn boundaries(lengths: &[i64]) -> Vec<i64> {
    let mut end = 0;
    let ends = lengths.iter().map(|length| {
        end += length;
        end
    });
    std::iter::once(0).chain(ends).collect()
}
