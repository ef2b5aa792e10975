use tch::{Kind, Tensor};

use super::{assert_near, empty, gpu, normal, wide};
use crate::lm::cuda::Norm;

const EPS: f64 = 1e-6;

fn plain(x: &Tensor, weight: &Tensor) -> Tensor {
    let mean = (x * x).mean_dim([-1_i64].as_slice(), true, Kind::Double);
    x / (mean + EPS).sqrt() * weight
}

fn row_largest(x: &Tensor) -> Tensor {
    x.abs().amax([1_i64].as_slice(), false).to_kind(Kind::Float)
}

#[test]
fn norm_is_the_plain_one_where_there_is_a_gpu() {
    let Some(device) = gpu() else { return };
    for hidden in [64, 576, 1032, 2560, 8192] {
        let norm = Norm::new(hidden, device).unwrap();
        let (x, y) = (
            normal(&[37, hidden], 1, device),
            normal(&[37, hidden], 2, device),
        );
        let weight = normal(&[hidden], 3, device);
        let out = empty(&[37, hidden + 16], device);
        let sum = empty(&[37, hidden], device);
        norm.forward(&x, Some(&y), &weight, Some(&sum), &out, EPS)
            .unwrap();
        assert_eq!(sum, &x + &y);
        let expected = plain(&wide(&sum), &wide(&weight));
        assert_near(&out.narrow(1, 0, hidden), &expected, 8e-3);
        assert_eq!(out.narrow(1, hidden, 16).abs().max().double_value(&[]), 0.0);

        let largest = Tensor::zeros([37], (Kind::Float, device));
        norm.forward_to_round(&x, None, &weight, None, &out, Some(&largest), EPS)
            .unwrap();
        let expected = plain(&wide(&x), &wide(&weight));
        assert_near(&out.narrow(1, 0, hidden), &expected, 8e-3);
        assert_eq!(largest, row_largest(&out));
    }
}

#[test]
fn norm_backward_is_the_plain_one_where_there_is_a_gpu() {
    let Some(device) = gpu() else { return };
    for hidden in [64, 576, 2560, 8192] {
        let norm = Norm::new(hidden, device).unwrap();
        let x = normal(&[37, hidden], 1, device);
        let weight = normal(&[hidden], 2, device);
        let dy = normal(&[37, hidden + 48], 3, device);
        let dx = normal(&[37, hidden], 4, device);
        let (leaf, residual) = (wide(&x).set_requires_grad(true), wide(&dx));
        let product = plain(&leaf, &wide(&weight)) * wide(&dy.narrow(1, 0, hidden));
        let gradient = Tensor::run_backward(&[product.sum(Kind::Double)], &[&leaf], false, false);
        let normed = empty(&[37, hidden + 16], device);
        let largest = Tensor::zeros([37], (Kind::Float, device));
        let (residual_dx, both) = (Some(&dx), (Some(&normed), Some(&largest)));
        norm.backward(&x, &weight, &dy, residual_dx, &dx, both.0, both.1, EPS)
            .unwrap();
        assert_eq!(largest, row_largest(&dx));
        assert_near(&dx, &(&gradient[0] + residual), 8e-3);
        let expected = plain(&wide(&x), &wide(&weight));
        assert_near(&normed.narrow(1, 0, hidden), &expected, 8e-3);
        norm.backward(&x, &weight, &dy, None, &dx, None, None, EPS)
            .unwrap();
        assert_near(&dx, &gradient[0], 8e-3);
    }
}
