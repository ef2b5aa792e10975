use tch::{Device, Kind, Tensor};

use super::{gpu, standard_normal};
use crate::lm::SampleOptions;
use crate::lm::cuda::sampler::{Choices, Sampler};
use crate::lm::cuda::slots::{Admission, Progress, RUNNING, STOPPED, Slots};
use crate::lm::sample::{History, row_seed, uniform};

const VOCAB: i64 = 1000;
const ROWS: usize = 40;

/// Histories in which n-grams come back, and logits of few distinct values, so that there are ties.
fn histories() -> Vec<Vec<i64>> {
    (0..ROWS)
        .map(|row| {
            let length = row + 1;
            (0..length).map(|at| ((at * at + row) % 7) as i64).collect()
        })
        .collect()
}

fn logits(device: Device) -> Tensor {
    let values = standard_normal(&[ROWS as i64, VOCAB], 11) * 3.0;
    // Tokens of the histories are likely, so that processors matter.
    let _ = values.narrow(1, 0, 7).g_add_scalar_(6.0);
    ((values * 8.0).round() / 8.0)
        .to_kind(Kind::BFloat16)
        .to_device(device)
}

/// What the device chooses for every row; None where it stopped.
fn chosen(
    options: &SampleOptions,
    choices: Choices,
    stops: &[i64],
    device: Device,
) -> Vec<Option<i64>> {
    let histories = histories();
    let slots = Slots::new(ROWS as i64, 64, VOCAB, device, choices, 1).unwrap();
    let admissions: Vec<Admission<'_>> = histories
        .iter()
        .enumerate()
        .map(|(slot, prompt)| Admission {
            slot,
            prompt,
            limit: 4,
            sample: options,
            uniforms: match choices.drawn {
                true => vec![uniform(&row_seed(options.seed, prompt), 0)],
                false => Vec::new(),
            },
        })
        .collect();
    slots.admit(&admissions).unwrap();
    let sampler = Sampler::new(choices, stops, ROWS as i64, device).unwrap();
    let index: Vec<i32> = (0..ROWS as i32).collect();
    let index = Tensor::from_slice(&index).to_device(device);
    sampler.begin(&slots, &index, VOCAB).unwrap();
    sampler.choose(&slots, &index, &logits(device)).unwrap();
    if let Some(banned) = &slots.banned {
        let left = banned.ne(0).any().int64_value(&[]);
        assert_eq!(left, 0, "tokens stay banned");
    }
    let progress = slots.progress().unwrap();
    let all: Vec<usize> = (0..ROWS).collect();
    let found = slots.histories(&all).unwrap();
    (0..ROWS)
        .map(|row| {
            let Progress {
                length,
                made,
                state,
                ..
            } = progress[row];
            if state == STOPPED {
                assert_eq!((length, made), (histories[row].len(), 0));
                return None;
            }
            assert_eq!(
                (length, made, state),
                (histories[row].len() + 1, 1, RUNNING)
            );
            assert_eq!(progress[row].token(0), found[row][length - 1]);
            assert_eq!(found[row][..length - 1], histories[row]);
            Some(found[row][length - 1])
        })
        .collect()
}

fn expected(options: &SampleOptions, stops: &[i64]) -> Vec<Option<i64>> {
    let histories = histories();
    let rows: Vec<History<'_>> = histories
        .iter()
        .map(|ids| History {
            ids,
            new_tokens: 0,
            seed: row_seed(options.seed, ids),
        })
        .collect();
    let tokens = options.next_tokens(&logits(Device::Cpu), &rows, stops);
    Vec::<i64>::try_from(tokens)
        .unwrap()
        .into_iter()
        .map(|token| (!stops.contains(&token)).then_some(token))
        .collect()
}

#[test]
fn greedy_choices_are_those_of_the_plain_processors_or_skipped_without_a_gpu() {
    let Some(device) = gpu() else { return };
    let plain = SampleOptions::default();
    let processed = SampleOptions {
        repetition_penalty: 1.3,
        no_repeat_ngram: 2,
        min_new_tokens: 1,
        ..SampleOptions::default()
    };
    let single = SampleOptions {
        no_repeat_ngram: 1,
        ..SampleOptions::default()
    };
    for options in [plain, processed, single] {
        let stops = [3, 500];
        for choices in [Choices::of(&options), Choices::ALL] {
            assert_eq!(
                chosen(&options, choices, &stops, device),
                expected(&options, &stops),
                "{options:?}"
            );
        }
    }
}

#[test]
fn draws_are_those_of_the_plain_processors_or_skipped_without_a_gpu() {
    let Some(device) = gpu() else { return };
    let settings = [
        (1.0, 0, 1.0, 1.0, 0),
        (0.7, 20, 1.0, 1.0, 0),
        (1.0, 0, 0.8, 1.0, 0),
        (0.7, 20, 0.8, 1.1, 3),
        (1.3, 1, 1.0, 1.0, 0),
        (0.9, 0, 0.0, 1.0, 0),
    ];
    for (temperature, top_k, top_p, repetition_penalty, no_repeat_ngram) in settings {
        let (mut same, mut all) = (0, 0);
        for seed in 0..10 {
            let options = SampleOptions {
                temperature,
                top_k,
                top_p,
                repetition_penalty,
                no_repeat_ngram,
                seed,
                ..SampleOptions::default()
            };
            let found = chosen(&options, Choices::of(&options), &[], device);
            assert_eq!(found, chosen(&options, Choices::ALL, &[], device));
            let expected = expected(&options, &[]);
            same += found.iter().zip(&expected).filter(|(a, b)| a == b).count();
            all += ROWS;
        }
        // A draw within the rounding of f32 of a border may fall to its other side.
        assert!(
            same + 2 >= all,
            "{same} of {all} at T {temperature} k {top_k} p {top_p}"
        );
    }
}
