use tch::{Kind, Tensor};

use super::{assert_near, empty, gpu, normal, wide};
use crate::lm::cuda::Heads;
use crate::lm::cuda::decode_attention::DecodeAttention;
use crate::lm::cuda::rotate::CacheRows;

/// Rows of many lengths, so that tokens are split over blocks or not, and one that is done.
#[test]
fn decode_attention_agrees_with_plain_algebra_or_is_skipped_without_a_gpu() {
    let Some(device) = gpu() else { return };
    for (query, key_value, dim) in [(4, 2, 32), (9, 3, 64), (32, 8, 128)] {
        let heads = Heads {
            query,
            key_value,
            dim,
        };
        let capacity = 700;
        for lengths in [vec![1, 0, 700, 33, 257], vec![699], vec![64; 90]] {
            let rows = lengths.len() as i64;
            let layers = [(
                normal(&[rows, key_value, capacity, dim], 1, device),
                normal(&[rows, key_value, capacity, dim], 2, device),
            )];
            let qkv = normal(&[rows, heads.all() * dim], 3, device);
            let index: Vec<i32> = (0..rows as i32).rev().collect();
            let positions: Vec<i32> = lengths.iter().map(|length| length - 1).collect();
            let cache = CacheRows {
                layers: &layers,
                slots: &Tensor::from_slice(&index).to_device(device),
                positions: &Tensor::from_slice(&positions).to_device(device),
            };
            let attention = DecodeAttention::new(heads, rows, device).unwrap();
            let out = empty(&[rows, query * dim], device);
            // Twice: the second time must find the counters as the first did.
            for _ in 0..2 {
                let _ = out.shallow_clone().fill_(7.0);
                attention.forward(&qkv, 0, &cache, &out).unwrap();
            }
            for (row, &length) in lengths.iter().enumerate() {
                let found = out.get(row as i64).view([query, dim]);
                if length == 0 {
                    assert_eq!(found.abs().max().double_value(&[]), 0.0);
                    continue;
                }
                let slot = i64::from(index[row]);
                let seen = |cache: &Tensor| {
                    wide(&cache.get(slot).narrow(1, 0, i64::from(length)))
                        .repeat_interleave_self_int(query / key_value, 0, None)
                };
                let q = wide(&qkv.get(row as i64).view([-1, dim]).narrow(0, 0, query));
                let scores = q.unsqueeze(1).matmul(&seen(&layers[0].0).transpose(1, 2));
                let weights = (scores / (dim as f64).sqrt()).softmax(2, Kind::Double);
                let expected = weights.matmul(&seen(&layers[0].1)).squeeze_dim(1);
                assert_near(&found, &expected, 1e-2);
            }
        }
    }
}
