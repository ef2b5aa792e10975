//! Scaled dot-product attention over packed sequences.

use tch::{Kind, Tensor};

use super::{LmError, Placement, cpu_attention, cuda};

/// Causal self-attention within each sequence of a packed batch; nothing crosses a boundary.
///
/// `q`: [T, heads, D]; `k`, `v`: [T, kv_heads, D]; `cu_seqlens`: the B + 1 sequence boundaries, from 0 to T.
/// Returns [T, heads · D].
pub fn causal_varlen(q: &Tensor, k: &Tensor, v: &Tensor, cu_seqlens: &[i64]) -> Tensor {
    varlen(q, k, v, cu_seqlens, true)
}

/// Like [`causal_varlen`], every token seeing its whole sequence.
pub(super) fn full_varlen(q: &Tensor, k: &Tensor, v: &Tensor, cu_seqlens: &[i64]) -> Tensor {
    varlen(q, k, v, cu_seqlens, false)
}

fn varlen(q: &Tensor, k: &Tensor, v: &Tensor, cu_seqlens: &[i64], causal: bool) -> Tensor {
    let [total, heads, dim] = q.size()[..] else {
        unreachable!("q has three dimensions")
    };
    let outputs: Vec<Tensor> = cu_seqlens
        .windows(2)
        .filter(|bounds| bounds[1] > bounds[0])
        .map(|bounds| {
            let own = |x: &Tensor| x.narrow(0, bounds[0], bounds[1] - bounds[0]);
            sequence(&own(q), &own(k), &own(v), None, causal)
        })
        .collect();
    match &outputs[..] {
        [output] => output.reshape([total, heads * dim]),
        outputs => Tensor::cat(outputs, 0).reshape([total, heads * dim]),
    }
}

/// One sequence: `q` [n, heads, D], `k` and `v` [L, kv_heads, D] → [n, heads, D].
fn sequence(q: &Tensor, k: &Tensor, v: &Tensor, mask: Option<&Tensor>, causal: bool) -> Tensor {
    if cpu_attention::pays(q, k) {
        return cpu_attention::attend(q, k, v, mask, causal);
    }
    let batched = |x: &Tensor| x.transpose(0, 1).unsqueeze(0);
    let (q, k, v) = (batched(q), batched(k), batched(v));
    let grouped = q.size()[1] != k.size()[1];
    Tensor::scaled_dot_product_attention(&q, &k, &v, mask, 0.0, causal, None, grouped)
        .squeeze_dim(0)
        .transpose(0, 1)
}

/// New tokens of one sequence against all its tokens so far, under an explicit mask.
///
/// `q`: [s, heads, D]; `k`, `v`: [L, kv_heads, D]; `mask`: [s, L], 0 or −∞, of the kind of `q`. Returns [s, heads · D].
pub(super) fn masked(q: &Tensor, k: &Tensor, v: &Tensor, mask: &Tensor) -> Tensor {
    sequence(q, k, v, Some(mask), false).reshape([q.size()[0], -1])
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
        let device = placement.device;
        let kernel = if !placement.flash() {
            VarlenKernel::None
        } else if queries == keys {
            VarlenKernel::Own(cuda::Sequences::new(&boundaries(queries), device, false)?)
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
            VarlenKernel::None => Ok(self.one_by_one(q, k, v)),
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

    fn one_by_one(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Tensor {
        let (mut first_query, mut first_key) = (0, 0);
        let outputs = self.lengths.iter().map(|&(queries, keys)| {
            let q = q.narrow(0, first_query, queries);
            let own = |x: &Tensor| x.narrow(0, first_key, keys);
            let seen = Tensor::ones([queries, keys], (Kind::Bool, q.device())).tril(keys - queries);
            let mask = Tensor::zeros([queries, keys], (q.kind(), q.device()))
                .masked_fill(&seen.logical_not(), f64::NEG_INFINITY);
            let output = masked(&q, &own(k), &own(v), &mask);
            first_query += queries;
            first_key += keys;
            output
        });
        Tensor::cat(&outputs.collect::<Vec<_>>(), 0)
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
