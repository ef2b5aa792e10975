use super::{assert_near, empty, gpu, normal, wide};
use crate::lm::cuda::few_rows::FewRows;

#[test]
fn products_of_few_rows_agree_with_plain_algebra_or_are_skipped_without_a_gpu() {
    let Some(device) = gpu() else { return };
    let kernels = FewRows::new(device).unwrap();
    for (out, inner, extra) in [
        (24, 64, 0),
        (960, 576, 0),
        (2560, 9728, 0),
        (1000, 2560, 48),
    ] {
        let weight = normal(&[out, inner + extra], 1, device).narrow(1, 0, inner);
        for rows in 1..=4 {
            let x = normal(&[rows, inner], 2 + rows, device);
            let y = empty(&[rows, out], device);
            assert!(kernels.multiply(&x, &weight, &y).unwrap());
            assert_near(&y, &wide(&x).matmul(&wide(&weight).tr()), 1e-2);
        }
        let (x, y) = (normal(&[5, inner], 2, device), empty(&[5, out], device));
        assert!(!kernels.multiply(&x, &weight, &y).unwrap());
    }
}
