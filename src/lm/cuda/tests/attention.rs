use tch::{Kind, Tensor};

use super::{assert_near, gpu, normal, wide};
use crate::lm::cuda::Sequences;

/// In double, each sequence by itself.
fn plain(q: &Tensor, k: &Tensor, v: &Tensor, boundaries: &[i64]) -> Tensor {
    let group = q.size()[1] / k.size()[1];
    let sequences = boundaries.windows(2).map(|pair| {
        let length = pair[1] - pair[0];
        let own = |x: &Tensor| x.narrow(0, pair[0], length).transpose(0, 1);
        let shared = |x: &Tensor| own(x).repeat_interleave_self_int(group, 0, None);
        let scale = (q.size()[2] as f64).sqrt();
        let scores = own(q).matmul(&shared(k).transpose(1, 2)) / scale;
        let later = Tensor::ones([length, length], (Kind::Bool, q.device())).triu(1);
        let weights = scores.masked_fill(&later, f64::NEG_INFINITY);
        weights
            .softmax(-1, Kind::Double)
            .matmul(&shared(v))
            .transpose(0, 1)
    });
    Tensor::cat(&sequences.collect::<Vec<_>>(), 0)
}

#[test]
fn attention_and_its_backward_are_the_plain_ones_where_there_is_a_gpu() {
    let Some(device) = gpu() else { return };
    let equal: &[i64] = &[0, 128, 256];
    for (boundaries, deterministic) in [(equal, false), (equal, true), (&[0, 60, 256], false)] {
        for (heads, kv_heads, dim) in [(4, 2, 32), (9, 3, 64), (8, 2, 128)] {
            let rotated = normal(&[256, heads + kv_heads, dim], 1, device);
            let all = normal(&[256, heads + 2 * kv_heads, dim], 2, device);
            let q = rotated.narrow(1, 0, heads);
            let k = rotated.narrow(1, heads, kv_heads);
            let v = all.narrow(1, heads + kv_heads, kv_heads);
            let leaves = [&q, &k, &v].map(|x| wide(x).set_requires_grad(true));
            let expected = plain(&leaves[0], &leaves[1], &leaves[2], boundaries);
            let sequences = Sequences::new(boundaries, device, deterministic).unwrap();
            let attended = sequences.forward(&q, &k, &v, true).unwrap();
            let output = sequences.output(&attended);
            assert_near(&output, &expected.reshape([256, -1]), 1e-2);

            let gradient = normal(&[256, heads, dim], 3, device);
            let product = (&expected * wide(&gradient)).sum(Kind::Double);
            let expected = Tensor::run_backward(&[product], &leaves, false, false);
            let found = sequences
                .backward(&attended, &gradient, [&q, &k, &v])
                .unwrap();
            for (found, expected) in found.iter().zip(&expected) {
                assert_near(found, expected, 2e-2);
            }
        }
    }
}
