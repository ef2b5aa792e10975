//! Attention as plain matrix products.
//!
//! libtorch's plain products use the processor's bf16 instructions everywhere, which is more than twice as fast as its
//! fused kernel without AMX. The scores are stored on the way and rounded to bf16, as in the reference's attention without
//! a fused kernel; the fused one keeps them in f32.

use tch::{Device, Kind, Tensor};

use super::Seen;

/// Queries whose scores are computed together: what they cannot see behind the last of them is not computed.
const BLOCK: i64 = 256;
/// Fewer queries are left to the fused kernel: they take less time than the additional calls.
const FEWEST: i64 = 128;
/// Longer sequences are left to the fused kernel, which stores no scores.
const LONGEST: i64 = 2048;

thread_local! {
    /// [BLOCK, 1, LONGEST + BLOCK]: −∞ where the column is more than LONGEST behind the row, else 0. The columns from
    /// LONGEST − s on are the causal mask of the queries s, s + 1, ….
    static CAUSAL: Tensor = Tensor::full(
        [BLOCK, LONGEST + BLOCK],
        f64::NEG_INFINITY,
        (Kind::BFloat16, Device::Cpu),
    )
    .triu(LONGEST + 1)
    .unsqueeze(1);
}

/// Whether [`attend`] is the faster way for queries [n, heads, D] and keys [L, kv_heads, D].
pub(super) fn pays(q: &Tensor, k: &Tensor) -> bool {
    q.device() == Device::Cpu
        && q.kind() == Kind::BFloat16
        && q.size()[0] >= FEWEST
        && k.size()[0] <= LONGEST
}

/// Bytes that the backward pass keeps of [`attend`] over a sequence of `length` tokens: what each token's heads give to the
/// tokens it sees, in bf16.
pub(in crate::lm) fn kept_bytes(heads: i64, length: i64) -> u64 {
    match (FEWEST..=LONGEST).contains(&length) {
        // On average half of the sequence and half a block.
        true => (heads * length * (length + BLOCK)) as u64,
        false => 0,
    }
}

/// `q`: [n, heads, D]; `k`, `v`: [L, kv_heads, D], L ≤ [`LONGEST`], and n = L for [`Seen::Causal`]. Returns [n, heads, D].
pub(super) fn attend(q: &Tensor, k: &Tensor, v: &Tensor, seen: Seen) -> Tensor {
    let [count, heads, dim] = q.size()[..] else {
        unreachable!("q has three dimensions")
    };
    let (length, kv_heads) = (k.size()[0], k.size()[1]);
    let causal = matches!(seen, Seen::Causal);
    // The query heads that share a key head become its rows: nothing is repeated.
    let group = heads / kv_heads;
    let q = (q * (dim as f64).powf(-0.5)).view([count, kv_heads, group, dim]);
    let (keys, values) = (k.permute([1, 2, 0]), v.transpose(0, 1));
    let outputs: Vec<Tensor> = (0..count)
        .step_by(BLOCK as usize)
        .map(|start| {
            let rows = BLOCK.min(count - start);
            let columns = if causal { start + rows } else { length };
            let queries = q.narrow(0, start, rows).transpose(0, 1);
            let mut scores = queries
                .reshape([kv_heads, rows * group, dim])
                .bmm(&keys.narrow(2, 0, columns))
                .view([kv_heads, rows, group, columns]);
            // In place: the product needs its result for no gradient.
            if causal {
                let _ = CAUSAL.with(|all| {
                    scores.g_add_(&all.narrow(0, 0, rows).narrow(2, LONGEST - start, columns))
                });
            } else if let Seen::Masked(mask) = seen {
                let _ = scores.g_add_(&mask.narrow(0, start, rows).unsqueeze(1));
            }
            let weights = scores.softmax(3, None::<Kind>);
            weights
                .view([kv_heads, rows * group, columns])
                .bmm(&values.narrow(1, 0, columns))
                .view([kv_heads, rows, group, dim])
                .transpose(0, 1)
                .reshape([rows, heads, dim])
        })
        .collect();
    match &outputs[..] {
        [output] => output.shallow_clone(),
        outputs => Tensor::cat(outputs, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(shape: [i64; 3]) -> Tensor {
        Tensor::randn(shape, (Kind::Float, Device::Cpu)).to_kind(Kind::BFloat16)
    }

    /// Against libtorch in f32, over more than one block and with keys before the queries. Rounded scores about double the
    /// error of libtorch's fused kernel in bf16; what is wrong is further away.
    #[test]
    fn is_attention() {
        for (count, length, causal) in [(600, 600, true), (300, 450, false), (7, 7, true)] {
            let (q, k, v) = (
                random([count, 6, 16]),
                random([length, 2, 16]),
                random([length, 2, 16]),
            );
            let options = (Kind::Float, Device::Cpu);
            let hidden = Tensor::ones([count, length], options).triu(1 + length - count);
            let mask = Tensor::zeros([count, length], options)
                .masked_fill(&hidden.gt(0.0), f64::NEG_INFINITY);
            let fused = |kind: Kind| {
                let batched = |x: &Tensor| x.to_kind(kind).transpose(0, 1).unsqueeze(0);
                Tensor::scaled_dot_product_attention(
                    &batched(&q),
                    &batched(&k),
                    &batched(&v),
                    Some(&mask.to_kind(kind)),
                    0.0,
                    false,
                    None,
                    true,
                )
                .squeeze_dim(0)
                .transpose(0, 1)
            };
            let exact = fused(Kind::Float);
            let error = |output: Tensor| {
                let error = (output.to_kind(Kind::Float) - &exact)
                    .square()
                    .mean(Kind::Float);
                error.sqrt().double_value(&[])
            };
            let mask = mask.to_kind(Kind::BFloat16);
            let seen = match causal {
                true => Seen::Causal,
                false => Seen::Masked(&mask),
            };
            let found = attend(&q, &k, &v, seen);
            let (found, fused) = (error(found), error(fused(Kind::BFloat16)));
            assert!(found < 3.0 * fused, "{found} and {fused}");
        }
    }
}
