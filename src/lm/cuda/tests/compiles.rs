use crate::lm::cuda::compiler::{Defines, Source, compile};
use crate::lm::cuda::{
    adamw, cross_entropy, dequantise, dropout, lora, lora_down, lora_grad, norm, rope, rounded,
    swiglu, swiglu_grad,
};

/// Ampere and Hopper, the oldest and newest instructions that the sources name.
const CAPABILITIES: [(i32, i32); 2] = [(8, 0), (9, 0)];

#[track_caller]
pub(super) fn check(source: Source, defines: Defines, kernels: &[&str]) {
    check_for(&CAPABILITIES, source, defines, kernels);
}

#[track_caller]
pub(super) fn check_for(
    capabilities: &[(i32, i32)],
    source: Source,
    defines: Defines,
    kernels: &[&str],
) {
    for &capability in capabilities {
        let ptx = compile(source, defines, capability).unwrap();
        let ptx = ptx.to_str().unwrap();
        for kernel in kernels {
            let entry = format!(".entry {kernel}(");
            assert!(ptx.contains(&entry), "{}: no {kernel}", source.name);
        }
        if let Some(folder) = std::env::var_os("FLOW_PTX") {
            let sizes: String = defines.iter().map(|(_, size)| format!("-{size}")).collect();
            let name = format!(
                "{}{sizes}-{}{}.ptx",
                source.name, capability.0, capability.1
            );
            std::fs::write(std::path::Path::new(&folder).join(name), ptx).unwrap();
        }
    }
}

#[test]
fn norm_compiles_without_a_gpu() {
    for hidden in [64, 576, 2560, 8192] {
        check(
            norm::SOURCE,
            &[("HIDDEN", hidden)],
            &["add_norm", "norm_backward"],
        );
    }
}

#[test]
fn rope_compiles_without_a_gpu() {
    for (heads, kv_heads, dim, normed) in [(32, 8, 128, 1), (9, 3, 64, 0), (4, 2, 32, 1)] {
        let defines = [
            ("HEADS", heads),
            ("KV_HEADS", kv_heads),
            ("HEAD_DIM", dim),
            ("NORM", normed),
        ];
        check(rope::SOURCE, &defines, &["rope", "rope_backward"]);
    }
}

#[test]
fn lora_compiles_without_a_gpu() {
    for tiles in [2, 4, 6] {
        let defines = |rounds| [("TILES", tiles), ("ROUNDS", rounds)];
        check(lora_down::SOURCE, &defines(0), &["lora_down"]);
        let rounding = [(8, 9), (9, 0)];
        check_for(&rounding, lora_down::SOURCE, &defines(1), &["lora_down"]);
    }
    for (steps, gate_steps) in [(0, 0), (1, 1), (1, 2), (4, 4), (0, 8)] {
        let defines = [("STEPS", steps), ("GATE_STEPS", gate_steps)];
        let kernels = ["swiglu_update", "swiglu_update_backward"];
        check(rounded::SOURCE, &defines, &kernels);
    }
    for steps in [0, 1, 3, 12] {
        check(
            lora::UP,
            &[("STEPS", steps)],
            &["lora_up", "swiglu_backward"],
        );
    }
    for rank in [8, 16] {
        check(swiglu_grad::SOURCE, &[("RANK", rank)], &["swiglu_grad"]);
    }
    for tiles in 1..=4 {
        check(
            lora_grad::SOURCE,
            &[("TILES", tiles)],
            &["lora_grad", "lora_grad_sum"],
        );
    }
    check(lora::INSTALL, &[], &["lora_install_a", "lora_install_b"]);
}

#[test]
fn what_has_no_sizes_compiles_without_a_gpu() {
    check(swiglu::SOURCE, &[], &["swiglu"]);
    check(cross_entropy::SOURCE, &[], &["cross_entropy"]);
    check(adamw::SOURCE, &[], &["adamw", "adamw_8bit"]);
    check(dequantise::SOURCE, &[], &["nf4", "int8"]);
    check(dropout::SOURCE, &[], &["dropout_mask"]);
}

#[test]
fn a_source_that_does_not_compile_is_one_clear_error() {
    let source = Source {
        name: "wrong.cu",
        text: "__global__ void kernel() { return 1 }",
    };
    let error = compile(source, &[], (9, 0)).unwrap_err().to_string();
    assert!(error.starts_with("GPU kernel `wrong.cu`: "), "{error}");
    assert!(error.contains("error"), "{error}");
}
