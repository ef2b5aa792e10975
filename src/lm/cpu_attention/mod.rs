//! Attention in bf16 on a CPU, where libtorch's own is slow: it multiplies bf16 by way of f32 if the processor has no AMX.

#[cfg(target_arch = "x86_64")]
mod fused;
mod products;
#[cfg(test)]
mod tests;

use tch::Tensor;

use super::LmError;

pub(super) use products::kept_bytes;

/// What the queries [n, heads, D] of a sequence see of its keys [L, kv_heads, D].
#[derive(Clone, Copy)]
pub(super) enum Seen<'a> {
    All,
    /// The queries are the last positions: query i sees the keys 0 to L − n + i.
    Causal,
    /// [n, L], 0 or −∞, of the kind of the queries.
    Masked(&'a Tensor),
}

/// Whether attention of these queries [n, heads, D] is faster sequence by sequence, by [`infer`] or [`differentiable`], than
/// libtorch's over several at once.
pub(super) fn pays(q: &Tensor) -> bool {
    #[cfg(target_arch = "x86_64")]
    if fused::pays(q) {
        return true;
    }
    products::pays(q, q)
}

/// Attention without gradient by the fused kernel: `q` [n, heads, D], `k` and `v` [L, kv_heads, D] → [n, heads, D]. None
/// where that is not there for these tensors and this processor.
///
/// # Errors
/// No memory.
#[cfg_attr(
    not(target_arch = "x86_64"),
    expect(unused_variables, clippy::unnecessary_wraps)
)]
pub(super) fn infer(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    seen: Seen,
) -> Result<Option<Tensor>, LmError> {
    #[cfg(target_arch = "x86_64")]
    if fused::pays(q) {
        return fused::attend(q, k, v, seen).map(Some);
    }
    Ok(None)
}

/// The same as plain products, with gradient. None where libtorch's own attention is faster. n = L for
/// [`Seen::Causal`].
pub(super) fn differentiable(q: &Tensor, k: &Tensor, v: &Tensor, seen: Seen) -> Option<Tensor> {
    products::pays(q, k).then(|| products::attend(q, k, v, seen))
}
