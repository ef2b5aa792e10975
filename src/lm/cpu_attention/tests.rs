//! Both ways against the plain expression in f64: around the borders of their blocks, with keys before the queries, and
//! under masks.

use tch::{Device, Kind, Tensor};

use super::{Seen, differentiable, infer};

const DOUBLE: (Kind, Device) = (Kind::Double, Device::Cpu);

#[expect(clippy::print_stderr, reason = "what a test says")]
fn skipped() {
    eprintln!("skipped: this processor has no bf16 products of AVX-512");
}

/// [length, heads, dim] in bf16, with scores that differ enough for a wrong one to show.
fn random(shape: [i64; 3]) -> Tensor {
    (Tensor::randn(shape, (Kind::Float, Device::Cpu)) * 1.5).to_kind(Kind::BFloat16)
}

/// [n, L] in f64: 0 where query i sees key j, else −∞.
fn causal_mask(queries: i64, keys: i64) -> Tensor {
    let seen = Tensor::ones([queries, keys], DOUBLE).tril(keys - queries);
    Tensor::zeros([queries, keys], DOUBLE).masked_fill(&seen.eq(0.0), f64::NEG_INFINITY)
}

/// softmax(q kᵀ / √D + mask) v in f64.
fn plain(q: &Tensor, k: &Tensor, v: &Tensor, mask: &Tensor) -> Tensor {
    let repeated = |x: &Tensor| {
        let group = q.size()[1] / k.size()[1];
        x.repeat_interleave_self_int(group, 1, None::<i64>)
            .transpose(0, 1)
    };
    let scores =
        q.transpose(0, 1).matmul(&repeated(k).transpose(1, 2)) / (q.size()[2] as f64).sqrt();
    let weights = (scores + mask).softmax(2, None::<Kind>);
    weights.matmul(&repeated(v)).transpose(0, 1)
}

/// The norm of the difference in terms of the expected one, and the largest difference of a query and head in terms of its
/// own norm.
fn errors(found: &Tensor, expected: &Tensor) -> [f64; 2] {
    assert_eq!(found.size(), expected.size());
    let difference = found.to_kind(Kind::Double) - expected;
    let each = difference.norm_scalaropt_dim(2.0, 2, false)
        / expected.norm_scalaropt_dim(2.0, 2, false).clamp_min(1e-3);
    [
        (difference.norm() / expected.norm()).double_value(&[]),
        each.max().double_value(&[]),
    ]
}

/// Query and key heads and their dimension, each with a sequence around each border of a block, and keys before it.
fn shapes() -> Vec<([i64; 3], i64, i64)> {
    let heads = [[9, 3, 64], [4, 4, 32], [4, 2, 128], [2, 1, 80], [3, 1, 16]];
    let mut shapes = Vec::new();
    for (at, queries) in [63, 64, 65, 127, 128, 129, 255, 256, 257, 384]
        .into_iter()
        .enumerate()
    {
        for before in [0, 1, 112] {
            shapes.push((heads[at % heads.len()], queries, queries + before));
        }
    }
    shapes
}

#[test]
fn fused_attention_is_the_plain_expression() {
    for ([heads, kv_heads, dim], queries, keys) in shapes() {
        let q = random([queries, heads, dim]);
        let (k, v) = (random([keys, kv_heads, dim]), random([keys, kv_heads, dim]));
        let [q64, k64, v64] = [&q, &k, &v].map(|x| x.to_kind(Kind::Double));
        let causal = causal_mask(queries, keys);
        // Padding: a tenth of the keys hidden from all, but the first one, which every query sees.
        let padded = Tensor::rand([1, keys], DOUBLE).lt(0.1);
        let _ = padded.narrow(1, 0, 1).fill_(0);
        let padded = causal.masked_fill(&padded, f64::NEG_INFINITY);
        let rounded = padded.to_kind(Kind::BFloat16);
        for (seen, mask) in [
            (Seen::All, &causal.zeros_like()),
            (Seen::Causal, &causal),
            (Seen::Masked(&rounded), &padded),
        ] {
            let Some(found) = infer(&q, &k, &v, seen).unwrap() else {
                return skipped();
            };
            // Weights and results are rounded to 8 bits, everything else is exact to f32.
            let [all, worst] = errors(&found, &plain(&q64, &k64, &v64, mask));
            assert!(
                all < 0.004 && worst < 0.012,
                "{heads} × {dim}, {queries} of {keys}: {all}, {worst}"
            );
        }
    }
}

/// What the model gives it are parts of larger tensors.
#[test]
fn fused_attention_reads_views() {
    let qkv = random([150, 9, 64]);
    let [q, k, v] = [(0, 5), (5, 1), (7, 1)].map(|(first, count)| qkv.narrow(1, first, count));
    let Some(found) = infer(&q, &k, &v, Seen::Causal).unwrap() else {
        return skipped();
    };
    let dense = infer(
        &q.contiguous(),
        &k.contiguous(),
        &v.contiguous(),
        Seen::Causal,
    );
    assert!(found.equal(&dense.unwrap().unwrap()));
    // Where the last dimension is not dense, a copy is.
    let [q, k, v] = [q, k, v].map(|x| x.transpose(1, 2).contiguous().transpose(1, 2));
    assert!(found.equal(&infer(&q, &k, &v, Seen::Causal).unwrap().unwrap()));
}

#[test]
fn products_and_their_gradients_are_those_of_the_plain_expression() {
    for ([heads, kv_heads, dim], queries, keys) in shapes() {
        if queries < 128 {
            continue;
        }
        let inputs = [
            random([queries, heads, dim]),
            random([keys, kv_heads, dim]),
            random([keys, kv_heads, dim]),
        ];
        let weight = random([queries, heads, dim]).to_kind(Kind::Double);
        let mask = causal_mask(queries, keys);
        let rounded = mask.to_kind(Kind::BFloat16);
        let seen = match queries == keys {
            true => Seen::Causal,
            false => Seen::Masked(&rounded),
        };
        let run = |kind: Kind| {
            let leaf = |input: &Tensor| input.detach().to_kind(kind).set_requires_grad(true);
            let [q, k, v] = inputs.each_ref().map(leaf);
            let output = match kind {
                Kind::Double => plain(&q, &k, &v, &mask),
                _ => differentiable(&q, &k, &v, seen).expect("it pays from 128 queries on"),
            };
            let loss = (output.to_kind(Kind::Double) * &weight).sum(Kind::Double);
            let gradients = Tensor::run_backward(&[loss], &[&q, &k, &v], false, false);
            (output.detach(), gradients)
        };
        let (found, gradients) = run(Kind::BFloat16);
        let (expected, exact) = run(Kind::Double);
        // Scores of some units are rounded to 8 bits, and their weights.
        let [all, _] = errors(&found, &expected);
        assert!(all < 0.01, "{queries} of {keys}: {all}");
        for (name, (found, exact)) in ["q", "k", "v"].iter().zip(gradients.iter().zip(&exact)) {
            let [all, _] = errors(found, exact);
            assert!(all < 0.015, "{queries} of {keys}, {name}: {all}");
        }
    }
}
