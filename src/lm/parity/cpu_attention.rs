//! The tiny models in bf16 on a CPU over sequences that take attention of ours, against the same in f32.

use tch::{Device, Kind, Tensor};

use super::{FAMILIES, at, tiny_at};
use crate::lm::cpu_attention::Seen;
use crate::lm::{Batch, Question, Scorer, attention};

/// The error of `found` in terms of what is expected.
fn error(found: &Tensor, expected: &Tensor) -> f64 {
    let difference = found.to_kind(Kind::Float) - expected;
    (difference.norm() / expected.norm()).double_value(&[])
}

/// Tokens that do not repeat within a sequence's reach.
fn tokens(count: usize, vocab: i64) -> Vec<i64> {
    (0..count as i64).map(|at| at * at * 37 % vocab).collect()
}

#[test]
fn logits_of_long_sequences() {
    for family in FAMILIES {
        let (config, exact) = tiny_at(family, at(Device::Cpu, Kind::Float));
        let (_, rounded) = tiny_at(family, at(Device::Cpu, Kind::BFloat16));
        let ids = tokens(429, config.vocab);
        let batch = Batch::pack(&[&ids[..129], &ids[129..]], Device::Cpu);
        let expected = exact.logits(&exact.forward(&batch));

        // With gradient, as in training.
        let products = error(&rounded.logits(&rounded.forward(&batch)), &expected);
        // Without, as in inference.
        let keep = Tensor::arange(429, (Kind::Int64, Device::Cpu));
        let hidden = rounded.infer(&batch.ids, &batch.positions, &keep, |_, q, k, v| {
            let parts = batch.cu_seqlens.windows(2).map(|ends| {
                let own = |x: &Tensor| x.narrow(0, ends[0], ends[1] - ends[0]);
                attention::infer(&own(q), &own(k), &own(v), Seen::Causal)
            });
            Ok(Tensor::cat(&parts.collect::<Result<Vec<_>, _>>()?, 0))
        });
        let fused = error(&rounded.logits(&hidden.unwrap()), &expected);
        assert!(
            products < 0.02 && fused < 0.02,
            "{family}: {products}, {fused}"
        );
    }
}

#[test]
fn answers_behind_a_shared_prefix() {
    for family in FAMILIES {
        let scores = |kind: Kind, shared: usize| -> Vec<f64> {
            let (mut config, decoder) = tiny_at(family, at(Device::Cpu, kind));
            config.context = 1024;
            let ids = tokens(400, config.vocab);
            let scorer = Scorer::new(&decoder, &config, None, ids[..shared].to_vec()).unwrap();
            // One answer of a token each, and answers that are paths, which take a mask.
            let question = |prompt: &[i64], answers: &[&[i64]]| Question {
                prompt: prompt.to_vec(),
                answers: answers.iter().map(|answer| answer.to_vec()).collect(),
            };
            let questions = [
                question(&ids, &[&[3], &[4]]),
                question(&ids[..240], &[&[3, 9, 5], &[4, 7], &[3, 8]]),
            ];
            let found = scorer.choose_many(&questions.each_ref()).unwrap();
            let scores = found
                .into_iter()
                .map(|choice| choice.unwrap().log_probabilities);
            scores.flatten().collect()
        };
        let expected = scores(Kind::Float, 0);
        for (kind, shared) in [
            (Kind::Float, 112),
            (Kind::BFloat16, 0),
            (Kind::BFloat16, 112),
        ] {
            for (found, expected) in scores(kind, shared).iter().zip(&expected) {
                let difference = (found - expected).abs();
                assert!(
                    difference < 0.05,
                    "{family}, {kind:?}, {shared}: {difference}"
                );
            }
        }
    }
}
