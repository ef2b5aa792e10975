//! Scaled dot-product attention over packed sequences.

use tch::Tensor;

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
