use tch::{Kind, Tensor};

use super::{assert_near, gpu, normal, wide};
use crate::lm::cuda::Heads;
use crate::lm::cuda::rotate::{CacheRows, Rotate};
use crate::lm::rope::Frequencies;
use crate::lm::{Rope, RopeScaling};

const EPS: f64 = 1e-6;

fn turned(x: &Tensor, weight: Option<&Tensor>, cos: &Tensor, sin: &Tensor) -> Tensor {
    let dim = x.size()[2];
    let x = match weight {
        None => x.shallow_clone(),
        Some(weight) => {
            let mean = (x * x).mean_dim([-1_i64].as_slice(), true, Kind::Double);
            x / (mean + EPS).sqrt() * weight
        }
    };
    &x * cos + x.roll(dim / 2, 2) * sin
}

#[test]
fn rotate_agrees_with_plain_algebra_and_fills_the_cache_or_is_skipped_without_a_gpu() {
    let Some(device) = gpu() else { return };
    for (query, key_value, dim, normed) in [(4, 2, 32, true), (9, 3, 64, false), (32, 8, 128, true)]
    {
        let heads = Heads {
            query,
            key_value,
            dim,
        };
        let (rows, slots, capacity) = (7, 3, 20);
        let qkv = normal(&[rows, heads.all() * dim], 1, device);
        let before = wide(&qkv).view([rows, heads.all(), dim]);
        let weight = normed.then(|| normal(&[heads.rotated(), dim], 2, device));
        let rope = Rope {
            theta: 1e4,
            scaling: RopeScaling::None,
        };
        let all = Tensor::arange(capacity, (Kind::Int64, device));
        let table = Frequencies::new(&rope, dim, device).table(&all, Kind::BFloat16);
        let positions = Tensor::from_slice(&[3_i32, 0, 19, -1, 7, 8, 2]).to_device(device);
        let of_rows = Tensor::from_slice(&[0_i32, 1, 2, 0, 1, 1, 2]).to_device(device);
        let cache = || Tensor::zeros([slots, key_value, capacity, dim], (Kind::BFloat16, device));
        let layers = [(cache(), cache())];
        let cache = CacheRows {
            layers: &layers,
            slots: &of_rows,
            positions: &positions,
        };
        Rotate::new(heads, normed, device)
            .unwrap()
            .apply(&qkv, weight.as_ref(), &table, true, Some((0, &cache)), EPS)
            .unwrap();
        let entries = positions.clamp_min(0).to_kind(Kind::Int64);
        let cos = wide(table.cos()).index_select(0, &entries);
        let sin = wide(table.signed_sin()).index_select(0, &entries);
        let weight = weight.as_ref().map(wide);
        let expected = turned(
            &before.narrow(1, 0, heads.rotated()),
            weight.as_ref(),
            &cos,
            &sin,
        );
        let found = qkv.view([rows, heads.all(), dim]);
        assert_near(&found.narrow(1, 0, heads.rotated()), &expected, 1e-2);
        let values = found.narrow(1, heads.rotated(), key_value);
        assert!(wide(&values).equal(&before.narrow(1, heads.rotated(), key_value)));
        let (keys, stored) = &layers[0];
        for row in [0, 1, 2, 4, 5, 6] {
            let (slot, at) = (of_rows.int64_value(&[row]), positions.int64_value(&[row]));
            let place = |cache: &Tensor| cache.get(slot).narrow(1, at, 1).squeeze_dim(1);
            assert!(place(keys).equal(&found.get(row).narrow(0, query, key_value)));
            assert!(place(stored).equal(&values.get(row)));
        }
        let filled = keys
            .ne(0.0)
            .any_dim(3, false)
            .sum(Kind::Int64)
            .int64_value(&[]);
        assert_eq!(
            filled,
            6 * key_value,
            "a row that is done wrote to the cache"
        );
    }
}
