use tch::{Kind, Tensor};

use super::{assert_near, gpu, standard_normal};
use crate::lm::cuda::{AdamWKernels, StepGradient};
use crate::lm::{AdamW, AdamWConfig};

#[test]
fn adamw_steps_are_the_plain_ones_where_there_is_a_gpu() {
    let Some(device) = gpu() else { return };
    let kernels = AdamWKernels::new(device).unwrap();
    // 8-bit moments for the first 40 blocks, f32 ones for the rest.
    let (len, eight_bit) = (256 * 50, 256 * 40);
    let config = AdamWConfig::default();
    let start = standard_normal(&[len], 1).to_device(device);
    let (mut plain, fused) = (start.copy(), start.copy());
    let mut plain_adamw = AdamW::new(config, len, eight_bit, device);
    let mut fused_adamw = AdamW::new(config, len, eight_bit, device);
    for step in 0..20_i32 {
        let sum = standard_normal(&[len], 2 + i64::from(step)).to_device(device)
            * f64::from(step % 3 + 1);
        let norm = sum.norm();
        // The mean gradient is clipped in two of three steps.
        let (tokens, max_norm) = (7, 25.0);
        let mean = &sum / tokens as f64;
        let clip = (max_norm / (mean.norm().double_value(&[]) + 1e-6)).min(1.0);
        plain_adamw.step(&mut plain, &(mean * clip), 1e-2).unwrap();
        let gradient = StepGradient {
            sum: &sum,
            norm: &norm,
            tokens: tokens as u64,
            max_norm,
        };
        fused_adamw
            .step_on_gpu(&kernels, &fused, &gradient, 1e-2)
            .unwrap();
    }
    let moved = &plain - &start;
    // An element whose moment lies between two codes may take the other one.
    assert_near(&(&fused - &start), &moved, 5e-2);
    let mean = (&fused - &plain).abs().mean(Kind::Double) / moved.abs().mean(Kind::Double);
    assert!(mean.double_value(&[]) < 1e-4, "{mean:?}");

    let before = fused.copy();
    let norm = Tensor::from(f32::NAN).to_device(device);
    let gradient = StepGradient {
        sum: &start,
        norm: &norm,
        tokens: 1,
        max_norm: 1.0,
    };
    fused_adamw
        .step_on_gpu(&kernels, &fused, &gradient, 1e-2)
        .unwrap();
    assert_eq!(fused, before);
}
