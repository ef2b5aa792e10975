//! SmolLM2-135M-Instruct with its real weights, from a Q4_1 GGUF.

use std::ops::ControlFlow;

use tch::{Device, Kind, Tensor};

use super::{assert_close, fixture_json, ids_of, numbers_of, on_every_device, smollm2_on};
use crate::lm::{Batch, Finish, GenerateOptions, Message, generate};

on_every_device!(
    parity_h_prompts_and_logits,
    parity_h_greedy_text,
    parity_h_text_loss,
);

fn parity_h_prompts_and_logits(device: Device) {
    let model = smollm2_on(device);
    for case in fixture_json("h_smollm2_real.json")["prompts"]
        .as_array()
        .unwrap()
    {
        let message = Message::user(case["prompt"].as_str().unwrap());
        let ids = model
            .tokenizer
            .encode(&model.render(&[message], true).unwrap())
            .unwrap();
        assert_eq!(ids, ids_of(&case["ids"]));

        let batch = Batch::pack(&[&ids], model.decoder.placement().device);
        let last = model
            .decoder
            .forward(&batch)
            .narrow(0, ids.len() as i64 - 1, 1);
        let expected = numbers_of(&case["top10_logits"]);
        let (values, top) = model
            .decoder
            .logits(&last)
            .topk(expected.len() as i64, 1, true, true);
        assert_eq!(super::ids(&top), ids_of(&case["top10"]));
        assert_close(&values.get(0), &Tensor::from_slice(&expected), 1e-2);
    }
}

fn parity_h_greedy_text(device: Device) {
    let model = smollm2_on(device);
    let reference = fixture_json("h_smollm2_real.json");
    let cases = reference["prompts"].as_array().unwrap();
    let prompts: Vec<Vec<i64>> = cases.iter().map(|case| ids_of(&case["ids"])).collect();
    let longest = cases
        .iter()
        .map(|case| ids_of(&case["greedy"]).len())
        .max()
        .unwrap();
    let options = GenerateOptions {
        max_new_tokens: longest,
        ..Default::default()
    };
    let mut done = 0;
    generate(&model, &prompts, &options, &mut |index, completion| {
        let mut found = completion.unwrap();
        if found.finish == Finish::Stop {
            found.ids.push(model.end_of_turn().unwrap());
        }
        assert_eq!(found.ids, ids_of(&cases[index]["greedy"]));
        let text = cases[index]["text"].as_str().unwrap();
        assert_eq!(found.text, text.strip_suffix("<|im_end|>").unwrap_or(text));
        done += 1;
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(done, cases.len());
}

fn parity_h_text_loss(device: Device) {
    let model = smollm2_on(device);
    let reference = fixture_json("h_smollm2_real.json");
    let ids = model
        .tokenizer
        .encode(reference["text"].as_str().unwrap())
        .unwrap();
    assert_eq!(ids, ids_of(&reference["text_ids"]));
    let batch = Batch::pack(&[&ids], model.decoder.placement().device);
    let logits = model.decoder.logits(&model.decoder.forward(&batch));
    let loss = logits
        .narrow(0, 0, ids.len() as i64 - 1)
        .cross_entropy_for_logits(&Tensor::from_slice(&ids[1..]).to_device(device))
        .to_kind(Kind::Double)
        .double_value(&[]);
    let expected = reference["text_loss"].as_f64().unwrap();
    let permuted = reference["text_loss_if_qk_not_unpermuted"]
        .as_f64()
        .unwrap();
    assert!(
        (loss - expected).abs() < 1e-3,
        "loss {loss}, expected {expected}, permuted {permuted}"
    );
}
