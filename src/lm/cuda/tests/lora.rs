use tch::{Device, Kind, Tensor};

use super::{assert_near, empty, gpu, normal, wide};
use crate::lm::cuda::{GradientArena, Lora, LoraPart, LoraShape, Mask, dropout_mask};

/// A fused layer and the plain operands of its update.
pub(super) struct Case {
    pub(super) lora: Lora,
    /// f32, flat: A and B of each part.
    pub(super) parameters: Tensor,
    /// f64 [P · r, in] and [out, P · r].
    pub(super) a: Tensor,
    pub(super) b: Tensor,
}

const SCALE: f64 = 2.0;

impl Case {
    /// `outs`: the output rows of each part; those of false have no update.
    pub(super) fn new(
        inner: i64,
        outs: &[(i64, bool)],
        r: i64,
        rounds: bool,
        device: Device,
    ) -> Self {
        let (mut parts, mut place, mut row) = (Vec::new(), 256, 0);
        for &(out, updated) in outs {
            if updated {
                let (a, b) = (place, place + r * inner);
                parts.push(LoraPart { row, out, a, b });
                place = b + out * r;
            }
            row += out;
        }
        let parameters = normal(&[place], 1, device).to_kind(Kind::Float);
        let count = parts.len() as i64;
        let b = Tensor::zeros([row, count * r], (Kind::Double, device));
        let mut a = vec![Tensor::zeros([0, inner], (Kind::Double, device))];
        for (index, part) in (0..).zip(&parts) {
            let values = |start, rows, columns| {
                wide(&parameters.narrow(0, start, rows * columns)).view([rows, columns])
            };
            a.push(values(part.a, r, inner));
            let block = values(part.b, part.out, r) * SCALE;
            b.narrow(0, part.row, part.out)
                .narrow(1, index * r, r)
                .copy_(&block);
        }
        let shape = LoraShape {
            in_features: inner,
            out_features: row,
            r,
            parts,
            scale: SCALE,
        };
        Self {
            lora: Lora::new(shape, rounds, device).unwrap(),
            parameters,
            a: Tensor::cat(&a, 0),
            b,
        }
    }
}

pub(super) fn cases(device: Device, rounds: bool) -> Vec<Case> {
    let case = |inner, outs: &[_], r| Case::new(inner, outs, r, rounds, device);
    vec![
        case(64, &[(32, true)], 2),
        case(576, &[(576, true), (192, true), (192, true)], 16),
        case(2560, &[(1024, true), (256, false), (256, true)], 16),
        case(1536, &[(640, true), (640, true)], 8),
        case(96, &[(48, true), (16, true), (16, true)], 64),
    ]
}

/// f64 [rows, in] with dropout's growth.
pub(super) fn plain_mask(mask: Mask, rows: i64, inner: i64, device: Device) -> Tensor {
    let threshold = mask.threshold;
    let kept = (1.0 / (1.0 - f64::from(threshold) / 65_536.0)) as f32;
    wide(&dropout_mask(&[rows, inner], kept, mask.seed, threshold, device).unwrap())
}

pub(super) const MASKS: [f64; 2] = [0.0, 0.1];

#[test]
fn lora_install_and_down_are_the_plain_ones_where_there_is_a_gpu() {
    let Some(device) = gpu() else { return };
    for case in cases(device, false) {
        let shape = case.lora.shape();
        let (inner, low) = (shape.in_features, shape.low());
        let used = shape.parts.len() as i64 * shape.r;
        let weight = empty(&[shape.out_features, inner + low], device);
        case.lora.install_a(&case.parameters).unwrap();
        let b = case.lora.low_of(&weight);
        case.lora.install_b(&case.parameters, &b).unwrap();
        assert_near(&weight.narrow(1, inner, used), &case.b, 4e-3);
        assert_eq!(
            weight.narrow(1, 0, inner).abs().max().double_value(&[]),
            0.0
        );
        // Each number of rows takes another arrangement of warps.
        for rows in [100, 9000, 17_000] {
            let x = empty(&[rows, inner + low], device);
            x.narrow(1, 0, inner)
                .copy_(&normal(&[rows, inner], 2, device));
            let saved = empty(&[rows, low], device);
            for probability in MASKS {
                let mask = Mask::new(probability, 77);
                let front = x.narrow(1, 0, inner);
                case.lora
                    .down(&front, &case.lora.low_of(&x), Some(&saved), mask, None)
                    .unwrap();
                let masked = wide(&front) * plain_mask(mask, rows, inner, device);
                let expected = masked.matmul(&case.a.tr());
                assert_near(&saved.narrow(1, 0, used), &expected, 8e-3);
                assert_eq!(case.lora.low_of(&x), saved);
                if used < low {
                    let rest = saved.narrow(1, used, low - used);
                    assert_eq!(rest.abs().max().double_value(&[]), 0.0);
                }
            }
        }
    }
}

#[test]
fn lora_up_and_swiglu_backward_are_the_plain_ones_where_there_is_a_gpu() {
    let Some(device) = gpu() else { return };
    for case in cases(device, false) {
        let shape = case.lora.shape();
        let (inner, low, rows) = (shape.in_features, shape.low(), 300);
        let used = shape.parts.len() as i64 * shape.r;
        case.lora.install_a(&case.parameters).unwrap();
        for probability in MASKS {
            let mask = Mask::new(probability, 78);
            let both = normal(&[rows, inner + low], 3, device);
            let (base, dlow) = (both.narrow(1, 0, inner), case.lora.low_of(&both));
            let update = wide(&dlow.narrow(1, 0, used)).matmul(&case.a);
            let expected = wide(&base) + update * plain_mask(mask, rows, inner, device);

            let gate_up = normal(&[rows, 2 * inner], 4, device);
            let leaf = wide(&gate_up).set_requires_grad(true);
            let halves = leaf.chunk(2, 1);
            let gated = halves[0].silu() * &halves[1];
            let product = (&gated * &expected).sum(Kind::Double);
            let gradient = Tensor::run_backward(&[product], &[&leaf], false, false);
            let found = empty(&[rows, inner], device);
            case.lora
                .swiglu_backward([&base, &dlow], &gate_up, &gate_up, &found, mask)
                .unwrap();
            assert_near(&gate_up, &gradient[0], 1e-2);
            assert_near(&found, &gated, 8e-3);

            let out = empty(&[rows, inner], device);
            case.lora.up(&base, &dlow, &out, mask).unwrap();
            assert_near(&out, &expected, 8e-3);
            case.lora.up(&base, &dlow, &base, mask).unwrap();
            assert_eq!(base, out);
        }
    }
}

#[test]
fn lora_gradients_are_the_plain_ones_where_there_is_a_gpu() {
    let Some(device) = gpu() else { return };
    for case in cases(device, false) {
        let shape = case.lora.shape();
        let (inner, low, out, r) = (shape.in_features, shape.low(), shape.out_features, shape.r);
        let arena = |gradients: &Tensor| {
            GradientArena::new([shape].into_iter(), gradients.shallow_clone()).unwrap()
        };
        for rows in [45, 3000] {
            for probability in MASKS {
                let mask = Mask::new(probability, 79);
                let x = normal(&[rows, inner], 5, device);
                let saved = normal(&[rows, low], 6, device);
                let dy = normal(&[rows, out], 7, device);
                let base = normal(&[rows, inner + low], 8, device);
                let dlow = case.lora.low_of(&base);
                let start = Tensor::ones_like(&case.parameters);
                let found = start.copy();
                case.lora
                    .gradients(&x, &saved, &dy, &dlow, mask, &arena(&found))
                    .unwrap();
                let masked = wide(&x) * plain_mask(mask, rows, inner, device);
                let expected = wide(&start);
                for (index, part) in (0..).zip(&shape.parts) {
                    let columns = |m: &Tensor| wide(&m.narrow(1, index * r, r)).tr();
                    let da = columns(&dlow).matmul(&masked);
                    let dy = wide(&dy.narrow(1, part.row, part.out));
                    let db = columns(&saved).matmul(&dy).tr() * SCALE;
                    let add = |place, gradient: &Tensor| {
                        let flat = gradient.reshape([-1]);
                        let _ = expected.narrow(0, place, flat.size()[0]).g_add_(&flat);
                    };
                    add(part.a, &da);
                    add(part.b, &db);
                }
                assert_near(&found, &expected, 2e-3);
                // The same bits again.
                let again = start.copy();
                case.lora
                    .gradients(&x, &saved, &dy, &dlow, mask, &arena(&again))
                    .unwrap();
                assert_eq!(again, found);
            }
        }
    }
}
