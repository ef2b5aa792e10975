use tch::{Kind, Tensor};

use super::{assert_near, gpu, normal, wide};
use crate::lm::cuda::CrossEntropy;

#[test]
fn cross_entropy_is_the_plain_one_where_there_is_a_gpu() {
    let Some(device) = gpu() else { return };
    let kernel = CrossEntropy::new(device).unwrap();
    for vocab in [264, 49_152, 151_936] {
        let logits = normal(&[33, vocab], 1, device) * 4;
        let targets = Tensor::arange(33, (Kind::Int64, device)) * (vocab / 33);
        let losses = Tensor::zeros([33], (Kind::Float, device));
        let log = wide(&logits).log_softmax(1, Kind::Double);
        let expected = -log.gather(1, &targets.unsqueeze(1), false).squeeze_dim(1);
        let original = logits.copy();
        kernel.run(&logits, &targets, &losses, false).unwrap();
        assert_near(&losses, &expected, 1e-5);
        assert_eq!(logits, original);

        kernel.run(&logits, &targets, &losses, true).unwrap();
        assert_near(&losses, &expected, 1e-5);
        let one_hot = targets.one_hot(vocab).to_kind(Kind::Double);
        assert_near(&logits, &(log.exp() - one_hot), 4e-3);
    }
}
