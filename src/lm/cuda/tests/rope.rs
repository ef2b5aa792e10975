use tch::{Device, Kind, Tensor};

use super::{assert_near, empty, gpu, normal, wide};
use crate::lm::cuda::{HeadRotation, Heads};
use crate::lm::rope::Frequencies;
use crate::lm::{Rope, RopeScaling, RotaryTable};

const EPS: f64 = 1e-6;
const TOKENS: i64 = 53;

fn table(heads: Heads, device: Device) -> RotaryTable {
    let rope = Rope {
        theta: 10_000.0,
        scaling: RopeScaling::None,
    };
    let positions = Tensor::arange(TOKENS, (Kind::Int64, device));
    Frequencies::new(&rope, heads.dim, device).table(&positions, Kind::BFloat16)
}

/// All heads in double: queries and keys normed and rotated.
fn plain(qkv: &Tensor, weight: Option<&Tensor>, table: &RotaryTable, heads: Heads) -> Tensor {
    let mut rotated = qkv.narrow(1, 0, heads.rotated());
    if let Some(weight) = weight {
        let squares = &rotated * &rotated;
        let mean = squares.mean_dim([-1_i64].as_slice(), true, Kind::Double);
        rotated = rotated / (mean + EPS).sqrt() * wide(weight);
    }
    &rotated * wide(table.cos()) + rotated.roll(heads.dim / 2, 2) * wide(table.signed_sin())
}

#[test]
fn rope_and_its_backward_are_the_plain_ones_where_there_is_a_gpu() {
    let Some(device) = gpu() else { return };
    for (query, key_value, dim, normed) in [
        (32, 8, 128, true),
        (9, 3, 64, false),
        (4, 2, 32, true),
        (4, 2, 16, false),
        (2, 1, 256, true),
    ] {
        let heads = Heads {
            query,
            key_value,
            dim,
        };
        let rotation = HeadRotation::new(heads, normed, device).unwrap();
        let table = table(heads, device);
        let qkv = normal(&[TOKENS, heads.all() * dim], 1, device);
        let weight = normed.then(|| normal(&[heads.rotated(), dim], 2, device));
        let rotated = empty(&[TOKENS, heads.rotated(), dim], device);
        rotation
            .forward(&qkv, weight.as_ref(), &table, &rotated, EPS)
            .unwrap();
        let leaf = wide(&qkv).set_requires_grad(true);
        let split = leaf.view([TOKENS, heads.all(), dim]);
        let expected = plain(&split, weight.as_ref(), &table, heads);
        assert_near(&rotated, &expected, 2e-2);

        // Gradients of uneven strides, as attention gives them.
        let gradient = normal(&[TOKENS, heads.rotated(), dim], 3, device);
        let dq = gradient.narrow(1, 0, query);
        let dk = gradient.narrow(1, query, key_value).contiguous();
        let dv = normal(&[key_value, TOKENS, dim], 4, device).transpose(0, 1);
        let dqkv = empty(&[TOKENS, heads.all() * dim], device);
        let largest = Tensor::zeros([TOKENS], (Kind::Float, device));
        rotation
            .backward(
                &qkv,
                weight.as_ref(),
                &table,
                [&dq, &dk, &dv],
                &dqkv,
                Some(&largest),
                EPS,
            )
            .unwrap();
        let expected_largest = dqkv.abs().amax([1_i64].as_slice(), false);
        assert_eq!(largest, expected_largest.to_kind(Kind::Float));
        let values = split.narrow(1, heads.rotated(), key_value);
        let product =
            (expected * wide(&gradient)).sum(Kind::Double) + (values * wide(&dv)).sum(Kind::Double);
        let expected = Tensor::run_backward(&[product], &[&leaf], false, false);
        assert_near(&dqkv, &expected[0], 1e-2);
    }
}
