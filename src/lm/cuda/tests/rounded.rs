//! What a training step in e4m3 adds: rounding in passing, and the gated activation over products without their update.

use tch::{Device, Kind, Tensor};

use super::e4m3::{capable, decoded};
use super::lora::{Case, MASKS, cases, plain_mask};
use super::{assert_near, empty, normal, wide};
use crate::lm::cuda::e4m3::Rows;
use crate::lm::cuda::{GateUp, Mask, Rounded, Rounding};

/// The largest magnitude of each row, f32 [T].
fn largest(x: &Tensor) -> Tensor {
    x.abs().amax([1_i64].as_slice(), false).to_kind(Kind::Float)
}

fn zeros(rows: i64, device: Device) -> Tensor {
    Tensor::zeros([rows], (Kind::Float, device))
}

/// Each element is off by no more than half a step: a sixteenth of it, or half the smallest number of its row.
#[track_caller]
fn assert_nearest(rows: &Rows, x: &Tensor) {
    let half_step = wide(x).abs() / 16.0 + wide(&rows.scales) * 2_f64.powi(-10);
    let over = ((decoded(rows) - wide(x)).abs() - half_step * 1.001).max();
    assert!(over.double_value(&[]) <= 0.0, "{over:?}");
    let expected = wide(&largest(x)) / 448.0;
    assert_near(&rows.scales.squeeze_dim(1), &expected, 1e-6);
}

#[test]
fn rounding_in_passing_is_to_the_nearest_or_is_skipped_without_a_gpu() {
    let Some(device) = capable() else { return };
    for case in cases(device, true) {
        let shape = case.lora.shape();
        let (inner, low) = (shape.in_features, shape.low());
        case.lora.install_a(&case.parameters).unwrap();
        for rows in [1, 100, 3000] {
            let x = normal(&[rows, inner], 2, device);
            for probability in MASKS {
                let mask = Mask::new(probability, 77);
                let (plain, found) = (empty(&[rows, low], device), empty(&[rows, low], device));
                case.lora.down(&x, &plain, None, mask, None).unwrap();
                let to = Rows::empty(rows, inner, device).unwrap();
                let rounded = Rounded {
                    largest: &largest(&x),
                    rows: &to,
                };
                case.lora
                    .down(&x, &found, None, mask, Some(rounded))
                    .unwrap();
                assert_eq!(found, plain);
                assert_nearest(&to, &x);
            }
        }
    }
}

#[test]
fn gradients_go_down_through_b_or_are_skipped_without_a_gpu() {
    let Some(device) = capable() else { return };
    for case in cases(device, true) {
        let shape = case.lora.shape();
        let (out, low, rows) = (shape.out_features, shape.low(), 300);
        let used = shape.parts.len() as i64 * shape.r;
        let b = empty(&[out, low], device);
        case.lora.install_b(&case.parameters, &b).unwrap();
        let (dy, dlow) = (normal(&[rows, out], 3, device), empty(&[rows, low], device));
        let to = Rows::empty(rows, out, device).unwrap();
        let rounded = Rounded {
            largest: &largest(&dy),
            rows: &to,
        };
        let bt = b.tr().contiguous();
        case.lora
            .down_gradient(&dy, &bt, &dlow, Some(rounded))
            .unwrap();
        assert_near(&dlow.narrow(1, 0, used), &wide(&dy).matmul(&case.b), 8e-3);
        assert_nearest(&to, &dy);
    }
}

#[test]
fn swiglu_with_its_update_is_the_plain_one_or_is_skipped_without_a_gpu() {
    let Some(device) = capable() else { return };
    for (width, r, gate, down) in [
        (64, 8, [true, true], true),
        (576, 16, [true, true], true),
        (2560, 16, [true, false], false),
        (1536, 32, [false, false], true),
        (352, 64, [true, true], true),
    ] {
        let above = Case::new(width, &[(96, down)], r, true, device);
        above.lora.install_a(&above.parameters).unwrap();
        let parts = gate.map(|updated| (width, updated));
        let case = Case::new(96, &parts, r, true, device);
        let shape = case.lora.shape();
        let rounding = Rounding::new(shape, above.lora.shape(), device).unwrap();
        let (low, count) = (shape.low(), shape.parts.len() as i64 * r);
        let b = empty(&[2 * width, low], device);
        case.lora.install_b(&case.parameters, &b).unwrap();
        for rows in [1, 130, 300] {
            let frozen = normal(&[rows, 2 * width], 4, device);
            let x = normal(&[rows, low], 5, device) * 0.1;
            let operands = GateUp {
                rows: &frozen,
                low: (low > 0).then_some(&x),
                b: &b,
            };
            let mut leaf = wide(&frozen);
            if count > 0 {
                let used = x.narrow(1, 0, count);
                leaf += wide(&used).matmul(&wide(&b.narrow(1, 0, count)).tr());
            }
            let leaf = leaf.set_requires_grad(true);
            let halves = leaf.chunk(2, 1);
            let expected = halves[0].silu() * &halves[1];
            let (gated, most) = (empty(&[rows, width], device), zeros(rows, device));
            rounding.swiglu(operands, &gated, &most).unwrap();
            assert_near(&gated, &expected.detach(), 1e-2);
            assert_eq!(most, largest(&gated));

            for probability in MASKS {
                let mask = Mask::new(probability, 78);
                let base = normal(&[rows, width], 6, device);
                let above_low = above.lora.shape().low();
                let dlow = normal(&[rows, above_low], 7, device);
                let mut d = wide(&base);
                if down {
                    let update = wide(&dlow.narrow(1, 0, r)).matmul(&above.a);
                    d += update * plain_mask(mask, rows, width, device);
                }
                let product = (&expected * &d).sum(Kind::Double);
                let gradient = Tensor::run_backward(&[product], &[&leaf], true, false);
                let place = frozen.copy();
                let operands = GateUp {
                    rows: &place,
                    ..operands
                };
                let again = empty(&[rows, width], device);
                let most = zeros(rows, device);
                let gradients = [&base, &dlow];
                rounding
                    .swiglu_backward(&above.lora, gradients, operands, &again, &most, mask)
                    .unwrap();
                assert_near(&place, &gradient[0], 1e-2);
                assert_eq!(again, gated);
                assert_eq!(most, largest(&place));
            }
        }
    }
}
