//! Scaled dot-product attention over packed sequences.

use tch::Tensor;

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
            let slice = |x: &Tensor| x.narrow(0, bounds[0], bounds[1] - bounds[0]);
            causal(&slice(q), &slice(k), &slice(v))
        })
        .collect();
    match outputs.len() {
        1 => outputs[0].reshape([total, heads * dim]),
        _ => Tensor::cat(&outputs, 0).reshape([total, heads * dim]),
    }
}

/// One sequence: [n, heads, D] → [n, heads, D].
fn causal(q: &Tensor, k: &Tensor, v: &Tensor) -> Tensor {
    let batched = |x: &Tensor| x.transpose(0, 1).unsqueeze(0);
    Tensor::scaled_dot_product_attention::<Tensor>(
        &batched(q),
        &batched(k),
        &batched(v),
        None,
        0.0,
        true,
        None,
        true,
    )
    .squeeze_dim(0)
    .transpose(0, 1)
}
