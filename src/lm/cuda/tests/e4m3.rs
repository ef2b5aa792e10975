use tch::{Device, Kind, Tensor};

use super::{assert_near, gpu, normal, wide};
use crate::lm::cuda::e4m3::{E4m3, Rows, multiplies_e4m3};
use crate::lm::{Fp8, Placement};

pub(super) fn capable() -> Option<Device> {
    let device = gpu()?;
    let placement = Placement {
        device,
        kind: Kind::BFloat16,
    };
    multiplies_e4m3(placement).then_some(device)
}

pub(super) fn decoded(rows: &Rows) -> Tensor {
    wide(&rows.codes.to_kind(Kind::Float)) * wide(&rows.scales)
}

/// The rounding of libtorch, row by row.
fn rounded(x: &Tensor) -> Tensor {
    wide(&Fp8::encode(x).unwrap().decode(Kind::Float))
}

#[test]
fn rounding_agrees_with_libtorch_or_is_skipped_without_a_gpu() {
    let Some(device) = capable() else { return };
    let e4m3 = E4m3::new(device).unwrap();
    for width in [64, 576, 2560, 9728] {
        let (x, y) = (
            normal(&[5, width], 1, device),
            normal(&[5, width], 2, device),
        );
        let weight = normal(&[width], 3, device);
        let rows = || Rows::empty(5, width, device).unwrap();

        let plain = rows();
        e4m3.round(&x, &plain).unwrap();
        assert_near(&decoded(&plain), &rounded(&x), 1e-6);

        let gate_up = normal(&[5, 2 * width], 4, device);
        let gated = rows();
        e4m3.swiglu(&gate_up, &gated).unwrap();
        let halves = wide(&gate_up).chunk(2, 1);
        // A step of the rounding is an eighth of a number.
        assert_near(&decoded(&gated), &(halves[0].silu() * &halves[1]), 0.07);

        let normed = rows();
        let sum = x.copy();
        e4m3.add_norm(&sum, Some(&y), &weight, &normed, 1e-6)
            .unwrap();
        assert!(sum.equal(&(&x + &y)));
        let wide_sum = wide(&sum);
        let mean = (&wide_sum * &wide_sum).mean_dim([-1_i64].as_slice(), true, Kind::Double);
        let expected = wide_sum / (mean + 1e-6).sqrt() * wide(&weight);
        assert_near(&decoded(&normed), &expected, 0.07);
    }
}

#[test]
fn products_agree_with_plain_algebra_or_are_skipped_without_a_gpu() {
    let Some(device) = capable() else { return };
    let weight = Fp8::encode(&normal(&[96, 2560], 1, device)).unwrap();
    let x = normal(&[33, 2560], 2, device);
    let rows = Rows::empty(33, 2560, device).unwrap();
    E4m3::new(device).unwrap().round(&x, &rows).unwrap();
    let expected = decoded(&rows).matmul(&wide(&weight.decode(Kind::Float)).tr());
    assert_near(&rows.multiply(&weight).unwrap(), &expected, 1e-2);
    let out = Tensor::zeros([33, 96], (Kind::BFloat16, device));
    rows.multiply_into(&weight, &out).unwrap();
    assert!(out.equal(&rows.multiply(&weight).unwrap()));
}
