use super::{assert_near, empty, gpu, normal, wide};
use crate::lm::cuda::Swiglu;

#[test]
fn swiglu_is_the_plain_one_where_there_is_a_gpu() {
    let Some(device) = gpu() else { return };
    let swiglu = Swiglu::new(device).unwrap();
    for width in [96, 1536, 9728] {
        let gate_up = normal(&[41, 2 * width], 1, device);
        let out = empty(&[41, width + 16], device);
        swiglu.forward(&gate_up, &out).unwrap();
        let halves = wide(&gate_up).chunk(2, 1);
        let expected = halves[0].silu() * &halves[1];
        assert_near(&out.narrow(1, 0, width), &expected, 8e-3);
        assert_eq!(out.narrow(1, width, 16).abs().max().double_value(&[]), 0.0);
    }
}
