use tch::{Kind, Tensor};

use super::{assert_near, gpu, normal, wide};
use crate::lm::cuda::Gemm;
use crate::lm::cuda::lt::{Lt, Product};

/// x [rows, k], a weight [n, k] or [k, n], and x · weight in f64.
fn operands(transposed: bool, device: tch::Device) -> [Tensor; 3] {
    // Rows with room behind them, and a weight that is the front of a wider one.
    let (rows, k, n) = (700, 2080, 2064);
    let x = normal(&[rows, k + 16], 1, device).narrow(1, 0, k);
    let weight = match transposed {
        true => normal(&[n, k + 48], 2, device).narrow(1, 0, k),
        false => normal(&[k, n + 8], 2, device).narrow(1, 0, n),
    };
    let plain = match transposed {
        true => weight.tr(),
        false => weight.shallow_clone(),
    };
    let expected = wide(&x).matmul(&wide(&plain));
    [x, weight, expected]
}

#[test]
fn every_algorithm_is_the_plain_product_where_there_is_a_gpu() {
    let Some(device) = gpu() else { return };
    let lt = Lt::new(device)
        .unwrap()
        .expect("cuBLASLt comes with libtorch");
    for transposed in [true, false] {
        let [x, weight, expected] = operands(transposed, device);
        let out = Tensor::empty(expected.size(), (Kind::BFloat16, device));
        let operands = [&x, &weight, &out];
        let product = Product::new(operands, transposed).unwrap();
        let algorithms = lt.algorithms(&product).unwrap();
        assert!(!algorithms.is_empty());
        for algorithm in algorithms {
            let _ = out.shallow_clone().fill_(f64::NAN);
            lt.multiply(&product, &algorithm, operands).unwrap();
            assert_near(&out, &expected, 8e-3);
        }
    }
}

#[test]
fn products_stay_right_when_their_algorithm_is_chosen_where_there_is_a_gpu() {
    let Some(device) = gpu() else { return };
    let (measured, plain) = (
        Gemm::new(true, device).unwrap(),
        Gemm::new(false, device).unwrap(),
    );
    for transposed in [true, false] {
        let [x, weight, expected] = operands(transposed, device);
        let by_libtorch = plain.multiply(&x, &weight, transposed).unwrap();
        assert_near(&by_libtorch, &expected, 8e-3);
        for _ in 0..60 {
            let found = measured.multiply(&x, &weight, transposed).unwrap();
            assert_near(&found, &expected, 8e-3);
            // Never chosen by measurement.
            let again = plain.multiply(&x, &weight, transposed).unwrap();
            assert_eq!(again, by_libtorch);
        }
        // Another number of rows in the same range takes the same algorithm.
        let fewer = measured.multiply(&x.narrow(0, 0, 333), &weight, transposed);
        assert_near(&fewer.unwrap(), &expected.narrow(0, 0, 333), 8e-3);
    }
    assert_eq!((measured.chosen(), plain.chosen()), (2, 0));
    // Small ones are left to libtorch.
    let small = normal(&[64, 528], 3, device);
    for _ in 0..60 {
        let _ = measured.multiply(&small, &small, true).unwrap();
    }
    assert_eq!(measured.chosen(), 2);
}
