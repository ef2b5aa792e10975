//! The fused forward pass and continuous batching against plain f32 on the CPU, with the tiny models of the fixtures.

use std::ops::ControlFlow;

use tch::{Device, Kind, Tensor};

use super::{assert_near, gpu, standard_normal};
use crate::lm::attention::Varlen;
use crate::lm::generate::Generator;
use crate::lm::lora::LoraUpdate;
use crate::lm::parity::{FAMILIES, tiny_at};
use crate::lm::sample::{History, row_seed};
use crate::lm::{
    Batch, Decoder, GenerateOptions, ModelConfig, Placement, Quantization, SampleOptions, cuda,
};

const CPU: Placement = Placement {
    device: Device::Cpu,
    kind: Kind::Float,
};

fn on(device: Device) -> Placement {
    Placement {
        device,
        kind: Kind::BFloat16,
    }
}

/// An adapter on every linear layer, the same one on every device.
fn adapt(decoder: &mut Decoder) {
    let placement = decoder.placement();
    for (seed, layer) in decoder.layers_mut().iter_mut().enumerate() {
        for (place, linear) in layer.linears_mut().into_iter().enumerate() {
            let random = |shape: [i64; 2], part: usize| {
                let seed = (seed * 4 + place) * 2 + part;
                let values = standard_normal(&shape, seed as i64) * 0.05;
                values
                    .to_kind(Kind::BFloat16)
                    .to_kind(placement.kind)
                    .to_device(placement.device)
            };
            linear.set_update(Some(LoraUpdate {
                a: random([16, linear.in_features()], 0),
                b: random([linear.out_features(), 16], 1),
                dora: None,
                dropout: None,
                merged: None,
            }));
        }
    }
}

fn prompts() -> Vec<Vec<i64>> {
    (1..=11_i64)
        .map(|length| {
            (0..length)
                .map(|at| (at * 37 + length * 11) % 500 + 4)
                .collect()
        })
        .collect()
}

#[test]
fn fused_forward_agrees_with_plain_f32_or_is_skipped_without_a_gpu() {
    let Some(device) = gpu() else { return };
    for family in FAMILIES {
        for adapted in [false, true] {
            let (_, mut plain) = tiny_at(family, CPU);
            let (_, mut fast) = tiny_at(family, on(device));
            if adapted {
                adapt(&mut plain);
                adapt(&mut fast);
            }
            let batch = Batch::pack(&prompts(), Device::Cpu);
            let expected = plain.forward(&batch);
            let keep: Vec<i64> = (0..expected.size()[0]).step_by(3).collect();
            let keep = Tensor::from_slice(&keep);
            let lengths: Vec<i64> = prompts().iter().map(|prompt| prompt.len() as i64).collect();
            let varlen = Varlen::new(&lengths, &lengths, on(device)).unwrap();
            assert!(fast.fused().is_some());
            let found = fast
                .infer(
                    &batch.ids.to_device(device),
                    &batch.positions.to_device(device),
                    &keep.to_device(device),
                    |_, q, k, v| varlen.attend(q, k, v),
                )
                .unwrap();
            let expected = expected.index_select(0, &keep);
            assert_near(&found.to_device(Device::Cpu), &expected, 4e-2);
        }
    }
}

#[test]
fn e4m3_forward_is_near_the_plain_one_or_skipped_without_a_gpu() {
    let Some(device) = gpu() else { return };
    if !cuda::multiplies_e4m3(on(device)) {
        return;
    }
    for family in FAMILIES {
        let (_, plain) = tiny_at(family, CPU);
        let (_, mut fast) = tiny_at(family, on(device));
        fast.quantize(Quantization::Fp8, false).unwrap();
        assert!(
            fast.layers()[0]
                .linears()
                .iter()
                .all(|linear| linear.fp8().is_some())
        );
        let batch = Batch::pack(&prompts(), Device::Cpu);
        let expected = plain.forward(&batch);
        let keep = Tensor::arange(expected.size()[0], (Kind::Int64, device));
        let lengths: Vec<i64> = prompts().iter().map(|prompt| prompt.len() as i64).collect();
        let varlen = Varlen::new(&lengths, &lengths, on(device)).unwrap();
        let found = fast
            .infer(
                &batch.ids.to_device(device),
                &batch.positions.to_device(device),
                &keep,
                |_, q, k, v| varlen.attend(q, k, v),
            )
            .unwrap();
        assert_near(&found.to_device(Device::Cpu), &expected, 0.25);
    }
}

fn continued(
    (config, decoder): &(ModelConfig, Decoder),
    stop_ids: &[i64],
    options: &GenerateOptions,
) -> Vec<Vec<i64>> {
    let prompts = prompts();
    let mut found: Vec<Option<Vec<i64>>> = prompts.iter().map(|_| None).collect();
    let generator = Generator {
        decoder,
        config,
        stop_ids,
        options,
    };
    generator
        .run(&prompts, &mut |index, result| {
            found[index] = Some(result.unwrap().0);
            ControlFlow::Continue(())
        })
        .unwrap();
    found.into_iter().map(Option::unwrap).collect()
}

/// More rows than slots, finished at many steps: every token taken is, by a plain forward pass over the whole text, the
/// best one or nearly so.
#[test]
fn continued_rows_take_the_best_token_or_are_skipped_without_a_gpu() {
    let Some(device) = gpu() else { return };
    let stop_ids: Vec<i64> = (0..512).step_by(16).collect();
    let processed = SampleOptions {
        repetition_penalty: 1.2,
        no_repeat_ngram: 3,
        min_new_tokens: 2,
        ..SampleOptions::default()
    };
    for family in FAMILIES {
        for (sample, adapted) in [(SampleOptions::default(), false), (processed.clone(), true)] {
            let mut plain = tiny_at(family, CPU);
            let mut fast = tiny_at(family, on(device));
            if adapted {
                adapt(&mut plain.1);
                adapt(&mut fast.1);
            }
            for batch_size in [1, 4, 16] {
                let options = GenerateOptions {
                    max_new_tokens: 40,
                    batch_size,
                    sample: sample.clone(),
                };
                let found = continued(&fast, &stop_ids, &options);
                for (prompt, new) in prompts().iter().zip(&found) {
                    let ids = [&prompt[..], new].concat();
                    let batch = Batch::pack(&[&ids], Device::Cpu);
                    let logits = plain.1.logits(&plain.1.forward(&batch));
                    for (made, &token) in new.iter().enumerate() {
                        let seen = &ids[..prompt.len() + made];
                        let history = History {
                            ids: seen,
                            new_tokens: made,
                            seed: row_seed(0, prompt),
                        };
                        let row = logits.narrow(0, seen.len() as i64 - 1, 1);
                        let scores = sample.processed(&row, &[history], &stop_ids);
                        let best = scores.max().double_value(&[]);
                        let taken = scores.double_value(&[0, token]);
                        let spread = row.std(false).double_value(&[]);
                        assert!(
                            taken >= best - 0.2 * spread,
                            "{family} batch {batch_size}: token {made} has {taken}, the best {best}, spread {spread}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn drawn_rows_are_the_same_in_any_number_of_slots_or_skipped_without_a_gpu() {
    let Some(device) = gpu() else { return };
    let fast = tiny_at(FAMILIES[0], on(device));
    let run = |batch_size| {
        let options = GenerateOptions {
            max_new_tokens: 8,
            batch_size,
            sample: SampleOptions {
                temperature: 1.0,
                top_k: 50,
                seed: 3,
                ..SampleOptions::default()
            },
        };
        continued(&fast, &[], &options)
    };
    let (few, many) = (run(3), run(11));
    assert!(few.iter().all(|new| new.len() == 8));
    // Near a border between tokens the rounding of a product of another number of rows decides.
    let same = few.iter().zip(&many).filter(|(a, b)| a == b).count();
    assert!(same * 2 > few.len(), "{same} of {} are the same", few.len());
}
