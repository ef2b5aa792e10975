use tch::{Kind, Tensor};

use super::lora::{Case, MASKS, plain_mask};
use super::{assert_near, gpu, normal, wide};
use crate::lm::cuda::{GradientArena, Lora, Mask, SwigluGrad};

#[test]
fn swiglu_grad_is_the_plain_one_where_there_is_a_gpu() {
    let Some(device) = gpu() else { return };
    for (width, hidden, r) in [(96, 64, 16), (1536, 576, 8), (9728, 320, 16)] {
        let above = Case::new(hidden, &[(width, true), (width, true)], r, false, device);
        let down = Case::new(width, &[(hidden, true)], r, false, device);
        // Both layers' factors in one vector, those of down behind the others.
        let behind = above.parameters.size()[0];
        let parameters = Tensor::cat(&[&above.parameters, &down.parameters], 0);
        let mut shape = down.lora.shape().clone();
        for part in &mut shape.parts {
            (part.a, part.b) = (part.a + behind, part.b + behind);
        }
        let layer = Lora::new(shape, false, device).unwrap();
        layer.install_a(&parameters).unwrap();
        let layers = [&above.lora, &layer];
        let shapes = layers.map(Lora::shape);
        assert!(SwigluGrad::fits(shapes[0], shapes[1]));
        let kernel = SwigluGrad::new(r, device).unwrap();
        let arena = |gradients: &Tensor| {
            GradientArena::new(shapes.into_iter(), gradients.shallow_clone()).unwrap()
        };
        for rows in [45, 3000] {
            for probability in MASKS {
                let mask = Mask::new(probability, 80);
                let both = normal(&[rows, width + shapes[1].low()], 3, device);
                let (base, dlow) = (both.narrow(1, 0, width), layer.low_of(&both));
                let low = normal(&[rows, shapes[0].low()], 6, device);
                let gate_up = normal(&[rows, 2 * width], 4, device);

                let kept = plain_mask(mask, rows, width, device);
                let update = wide(&dlow.narrow(1, 0, r)).matmul(&down.a) * &kept;
                let leaf = wide(&gate_up).set_requires_grad(true);
                let halves = leaf.chunk(2, 1);
                let gated = halves[0].silu() * &halves[1];
                let product = (&gated * (wide(&base) + update)).sum(Kind::Double);
                let d_gate_up =
                    Tensor::run_backward(&[product], &[&leaf], false, false).swap_remove(0);

                let start = Tensor::ones_like(&parameters);
                let run = || {
                    let (rows, found) = (gate_up.copy(), start.copy());
                    let gradients = [&base, &dlow];
                    kernel
                        .run(layers, gradients, &rows, &low, mask, &arena(&found))
                        .unwrap();
                    (rows, found)
                };
                let (d_rows, found) = run();
                assert_near(&d_rows, &d_gate_up, 1e-2);
                let expected = wide(&start);
                let add = |place, gradient: &Tensor| {
                    let flat = gradient.reshape([-1]);
                    let _ = expected.narrow(0, place, flat.size()[0]).g_add_(&flat);
                };
                let columns = |m: &Tensor, index| wide(&m.narrow(1, index * r, r)).tr();
                let da = columns(&dlow, 0).matmul(&(gated.detach() * &kept));
                add(shapes[1].parts[0].a, &da);
                for (index, part) in (0..).zip(&shapes[0].parts) {
                    // Of the gradients as they were rounded.
                    let dy = wide(&d_rows.narrow(1, part.row, part.out));
                    let db = columns(&low, index).matmul(&dy).tr() * shapes[0].scale;
                    add(part.b, &db);
                }
                assert_near(&found, &expected, 4e-3);
                // The same bits again.
                assert_eq!(run(), (d_rows, found));
            }
        }
    }
}
