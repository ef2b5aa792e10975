//! Generated ids and processed logits of transformers' `generate`.

use std::ops::ControlFlow;

use serde_json::Value;
use tch::{Device, Kind, Tensor};

use super::{
    FAMILIES, assert_close, at, fixture_json, ids, ids_of, on_every_device, tensors, tiny, tiny_at,
};
use crate::lm::generate::Generator;
use crate::lm::sample::{History, row_seed};
use crate::lm::{Decoder, GenerateOptions, LmError, ModelConfig, SampleOptions};

fn options(args: &Value, max_new_tokens: usize, batch_size: usize) -> GenerateOptions {
    for key in args.as_object().unwrap().keys() {
        let known = [
            "repetition_penalty",
            "no_repeat_ngram_size",
            "min_new_tokens",
            "eos_token_id",
        ];
        assert!(known.contains(&key.as_str()), "unknown argument {key}");
    }
    let count = |key: &str| usize::try_from(args[key].as_u64().unwrap_or(0)).unwrap();
    let sample = SampleOptions {
        repetition_penalty: args["repetition_penalty"].as_f64().unwrap_or(1.0),
        no_repeat_ngram: count("no_repeat_ngram_size"),
        min_new_tokens: count("min_new_tokens"),
        ..Default::default()
    };
    GenerateOptions {
        max_new_tokens,
        batch_size,
        sample,
    }
}

fn generate(
    (config, decoder): &(ModelConfig, Decoder),
    stop_ids: &[i64],
    options: &GenerateOptions,
    prompts: &[Vec<i64>],
) -> Vec<Result<Vec<i64>, LmError>> {
    let mut found: Vec<_> = prompts.iter().map(|_| None).collect();
    let generator = Generator {
        decoder,
        config,
        stop_ids,
        options,
    };
    generator
        .run(prompts, &mut |index, result| {
            found[index] = Some(result.map(|(ids, _)| ids));
            ControlFlow::Continue(())
        })
        .unwrap();
    found.into_iter().map(Option::unwrap).collect()
}

/// The reference's output up to its stop token: behind it there is padding.
fn until_stop(out: &[i64], stop_ids: &[i64]) -> Vec<i64> {
    out.iter()
        .copied()
        .take_while(|id| !stop_ids.contains(id))
        .collect()
}

on_every_device!(parity_f_generated_ids, parity_f_logits_processors);

fn parity_f_generated_ids(device: Device) {
    let fixture = fixture_json("f_generate.json");
    for family in FAMILIES {
        let model = tiny_at(family, at(device, Kind::Float));
        let cases = fixture[family].as_object().unwrap();
        let prompt = ids_of(&cases["prompt"]);
        let config = fixture_json(&format!("tiny_{family}/generation_config.json"));
        for (name, case) in cases.iter().filter(|(name, _)| *name != "prompt") {
            let stop_ids = match &case["args"]["eos_token_id"] {
                Value::Null => vec![config["eos_token_id"].as_i64().unwrap()],
                eos => ids_of(eos),
            };
            let out = ids_of(&case["out"]);
            let single = options(&case["args"], out.len(), 1);
            let found = generate(&model, &stop_ids, &single, std::slice::from_ref(&prompt));
            assert_eq!(
                *found[0].as_ref().unwrap(),
                until_stop(&out, &stop_ids),
                "{family} {name}"
            );

            let batch = &case["batch_left_padded"];
            let rows = batch["prompt"].as_array().unwrap().iter().map(ids_of);
            let masks = batch["mask"].as_array().unwrap().iter().map(ids_of);
            let prompts: Vec<Vec<i64>> = rows
                .zip(masks)
                .map(|(row, mask)| {
                    row.into_iter()
                        .zip(mask)
                        .filter(|(_, keep)| *keep == 1)
                        .map(|(id, _)| id)
                        .collect()
                })
                .collect();
            let outs: Vec<Vec<i64>> = batch["out"]
                .as_array()
                .unwrap()
                .iter()
                .map(ids_of)
                .collect();
            let together = options(&case["args"], outs[0].len(), prompts.len());
            let found = generate(&model, &stop_ids, &together, &prompts);
            for (row, (found, out)) in found.iter().zip(&outs).enumerate() {
                let expected = until_stop(out, &stop_ids);
                assert_eq!(
                    *found.as_ref().unwrap(),
                    expected,
                    "{family} {name} row {row}"
                );
            }
        }
    }
}

/// A row whose context ends early stays in its batch for a while and must not write over its neighbours.
#[test]
fn rows_at_the_end_of_the_context_leave_others_alone() {
    let model = tiny(FAMILIES[0], Kind::Float);
    let context = usize::try_from(model.0.context).unwrap();
    let prompts = [vec![9; context - 1], vec![3, 4], vec![5, 6, 7], vec![8]];
    let run = |batch_size| {
        let options = GenerateOptions {
            max_new_tokens: 12,
            batch_size,
            ..Default::default()
        };
        let found = generate(&model, &[], &options, &prompts);
        found.into_iter().map(Result::unwrap).collect::<Vec<_>>()
    };
    assert_eq!(run(1), run(4));
}

/// More rows than a batch holds, of many lengths, some finished early: every text is what the row gives alone.
#[test]
fn parity_f_batch_equals_single() {
    let prompt = ids_of(&fixture_json("f_generate.json")[FAMILIES[0]]["prompt"]);
    let prompts: Vec<Vec<i64>> = (1..=11)
        .map(|n| prompt.iter().cycle().take(n).copied().collect())
        .collect();
    // Every eighth token stops, so that rows finish at many steps and the cache is compacted.
    let stop_ids: Vec<i64> = (0..512).step_by(8).collect();
    let sampled = SampleOptions {
        temperature: 1.2,
        top_k: 200,
        seed: 5,
        ..Default::default()
    };
    for sample in [SampleOptions::default(), sampled] {
        let model = tiny(FAMILIES[0], Kind::Float);
        let run = |batch_size| {
            let options = GenerateOptions {
                max_new_tokens: 40,
                batch_size,
                sample: sample.clone(),
            };
            let found = generate(&model, &stop_ids, &options, &prompts);
            found.into_iter().map(Result::unwrap).collect::<Vec<_>>()
        };
        let alone = run(1);
        assert_eq!(alone, run(4));
        assert_eq!(alone, run(16));
        let lengths: std::collections::BTreeSet<usize> = alone.iter().map(Vec::len).collect();
        assert!(lengths.len() > 3, "all rows stop at {lengths:?}");
    }
}

#[test]
fn unusable_prompts_are_errors_of_their_row() {
    let model = tiny(FAMILIES[0], Kind::Float);
    let context = usize::try_from(model.0.context).unwrap();
    let prompts = [
        vec![1; context],
        vec![],
        vec![1, -1],
        vec![1; context - 2],
        vec![1, 5],
    ];
    let options = GenerateOptions {
        max_new_tokens: 4,
        ..Default::default()
    };
    let found = generate(&model, &[], &options, &prompts);
    insta::assert_snapshot!(found[0].as_ref().unwrap_err(), @"513 tokens do not fit into the context of 512");
    insta::assert_snapshot!(found[1].as_ref().unwrap_err(), @"the prompt cannot be used: it is empty");
    insta::assert_snapshot!(found[2].as_ref().unwrap_err(), @"the prompt cannot be used: token -1 is not in the vocabulary");
    assert_eq!(found[3].as_ref().unwrap().len(), 2);
    assert_eq!(found[4].as_ref().unwrap().len(), 4);
}

fn parity_f_logits_processors(device: Device) {
    at(device, Kind::Float);
    let f = tensors("f_logits_processors.safetensors");
    let context = f("context");
    let rows: Vec<Vec<i64>> = (0..context.size()[0])
        .map(|row| ids(&context.get(row)))
        .collect();
    let process = |options: SampleOptions| {
        let histories: Vec<History<'_>> = rows
            .iter()
            .map(|ids| History {
                ids,
                new_tokens: ids.len(),
                seed: row_seed(0, ids),
            })
            .collect();
        options.processed(&f("logits").to_device(device), &histories, &[])
    };
    let sampled = SampleOptions {
        temperature: 1.0,
        ..Default::default()
    };
    let chain = SampleOptions {
        repetition_penalty: 1.1,
        no_repeat_ngram: 3,
        temperature: 0.7,
        top_k: 20,
        top_p: 0.8,
        ..Default::default()
    };
    for (name, options) in [
        (
            "rep_1.3",
            SampleOptions {
                repetition_penalty: 1.3,
                ..Default::default()
            },
        ),
        (
            "ngram_2",
            SampleOptions {
                no_repeat_ngram: 2,
                ..Default::default()
            },
        ),
        (
            "temp_0.7",
            SampleOptions {
                temperature: 0.7,
                ..Default::default()
            },
        ),
        (
            "topk_20",
            SampleOptions {
                top_k: 20,
                ..sampled.clone()
            },
        ),
        (
            "topp_0.8",
            SampleOptions {
                top_p: 0.8,
                ..sampled.clone()
            },
        ),
        ("qwen_chain_rep1.1_ng3_t0.7_k20_p0.8", chain.clone()),
    ] {
        let (found, expected) = (process(options).to_device(Device::Cpu), f(name));
        let refused = |x: &Tensor| x.isneginf();
        assert!(
            refused(&found).equal(&refused(&expected)),
            "{name} refuses other tokens"
        );
        let finite = |x: &Tensor| x.masked_fill(&refused(x), 0.0);
        assert_close(&finite(&found), &finite(&expected), 1e-6);
    }
    assert_close(
        &process(chain).softmax(1, Kind::Float),
        &f("probs_of_chain"),
        1e-6,
    );
}
