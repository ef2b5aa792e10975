use super::compiles::{check, check_for};
use crate::lm::cuda::rope::Heads;
use crate::lm::cuda::{decode_attention, e4m3, few_rows, rotate, sampler};

#[test]
fn generation_compiles_without_a_gpu() {
    for (query, key_value, dim) in [
        (32, 8, 128),
        (9, 3, 64),
        (4, 2, 32),
        (8, 1, 256),
        (2, 2, 16),
    ] {
        let heads = Heads {
            query,
            key_value,
            dim,
        };
        for normed in [false, true] {
            check(rotate::SOURCE, &rotate::defines(heads, normed), &["rotate"]);
        }
        let defines = decode_attention::defines(heads);
        check(decode_attention::SOURCE, &defines, &["decode_attention"]);
    }
    let kernels = [
        "embed_newest",
        "mark_seen",
        "ban",
        "best_of_part",
        "draw",
        "advance",
    ];
    check(sampler::SOURCE, &[], &kernels);
    check(few_rows::SOURCE, &[], &["few_rows_1", "few_rows_4"]);
}

#[test]
fn rounding_to_e4m3_compiles_without_a_gpu() {
    let kernels = ["rows_e4m3", "add_norm_e4m3", "swiglu_e4m3"];
    check_for(&[(8, 9), (9, 0)], e4m3::SOURCE, &[], &kernels);
}
