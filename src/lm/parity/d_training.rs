//! Whole training runs against transformers' Trainer, a plain PyTorch loop and bitsandbytes' optimizer.

use std::collections::BTreeMap;

use serde_json::Value;
use tch::{Kind, Tensor};

use super::{assert_close, cpu, fixture, gpu, tiny_at};
use crate::lm::{
    Adapter, Decoder, Example, LoraConfig, Optimizer, Placement, TrainConfig, TrainHooks,
    TrainReport,
};

fn json(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(fixture(name)).unwrap()).unwrap()
}

fn integers(value: &Value) -> Vec<i64> {
    let numbers = value.as_array().unwrap().iter();
    numbers.map(|number| number.as_i64().unwrap()).collect()
}

pub(super) fn dataset() -> Vec<Example> {
    let rows = json("d_dataset.json");
    let rows = rows.as_array().unwrap().iter().enumerate();
    rows.map(|(index, row)| Example {
        id: index.to_string(),
        ids: integers(&row["input_ids"]),
        labels: integers(&row["labels"]),
    })
    .collect()
}

/// The family whose shapes the adapter of the fixture fits.
fn decoder(placement: Placement) -> Decoder {
    let init = fixture_tensors("d_adapter_init.safetensors");
    for family in super::FAMILIES {
        let (_, decoder) = tiny_at(family, placement);
        if Adapter::from_tensors(
            &decoder,
            &lora(&json("d_loss_curve.json")["config"]),
            0,
            init_names(&init),
        )
        .is_ok()
        {
            return decoder;
        }
    }
    panic!("the adapter of the fixture fits no family");
}

fn fixture_tensors(name: &str) -> BTreeMap<String, Tensor> {
    Tensor::read_safetensors(fixture(name))
        .unwrap()
        .into_iter()
        .collect()
}

/// Under the names of adapter files, whichever way the fixture writes them.
fn init_names(tensors: &BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor> {
    tensors
        .iter()
        .map(|(name, tensor)| (name.replace(".default", ""), tensor.shallow_clone()))
        .collect()
}

fn lora(config: &Value) -> LoraConfig {
    LoraConfig {
        r: config["lora"]["r"].as_i64().unwrap(),
        alpha: config["lora"]["alpha"].as_f64().unwrap(),
        dropout: config["lora"]["dropout"].as_f64().unwrap(),
        ..LoraConfig::default()
    }
}

fn settings(config: &Value) -> TrainConfig {
    let integer = |key: &str| config[key].as_u64().unwrap() as usize;
    let number = |key: &str| config[key].as_f64().unwrap();
    TrainConfig {
        batch_size: integer("micro_batch"),
        gradient_accumulation: integer("grad_accum"),
        max_steps: Some(integer("steps")),
        learning_rate: number("lr"),
        warmup_ratio: number("warmup_steps") / number("steps"),
        weight_decay: number("weight_decay"),
        max_grad_norm: number("max_grad_norm"),
        optimizer: Optimizer::AdamW,
        shuffle: false,
        ..TrainConfig::default()
    }
}

struct Silent;

impl TrainHooks for Silent {}

/// Starts from the adapter of the fixture instead of a drawn one.
fn run_from_fixture(config: &TrainConfig, placement: Placement) -> TrainReport {
    let mut decoder = decoder(placement);
    let lora = lora(&json("d_loss_curve.json")["config"]);
    let init = init_names(&fixture_tensors("d_adapter_init.safetensors"));
    let adapter = Adapter::from_tensors(&decoder, &lora, config.min_8bit_size, init).unwrap();
    let folder = tempfile::tempdir().unwrap();
    crate::lm::train::train_adapter(
        &mut decoder,
        adapter,
        &dataset(),
        &[],
        config,
        folder.path(),
        &mut Silent,
    )
    .unwrap()
}

/// `tolerance`: of the loss; the norm of the gradient may differ ten times as much.
fn check_curve(
    name: &str,
    config: &TrainConfig,
    placement: Placement,
    tolerance: f64,
) -> TrainReport {
    let report = run_from_fixture(config, placement);
    let expected = json("d_loss_curve.json")[name].clone();
    let expected = expected.as_array().unwrap();
    assert_eq!(report.curve.len(), expected.len());
    for (found, expected) in report.curve.iter().zip(expected) {
        let number = |key: &str| expected[key].as_f64().unwrap();
        let close = |found: f64, key: &str, tolerance: f64| {
            let expected = number(key);
            assert!(
                (found - expected).abs() <= tolerance,
                "{name} step {}: {key} {found}, expected {expected}",
                number("step")
            );
        };
        close(found.step as f64, "step", 0.0);
        close(found.loss, "loss", tolerance);
        close(found.learning_rate, "lr", 1e-12);
        close(found.grad_norm, "grad_norm", 10.0 * tolerance);
        if expected["tokens"].is_number() {
            close(found.tokens as f64, "tokens", 0.0);
        }
    }
    report
}

#[test]
fn parity_d_adamw() {
    let config = settings(&json("d_loss_curve.json")["config"]);
    let report = check_curve("plain_token_normalised", &config, cpu(Kind::Float), 1e-3);
    check_curve("hf_trainer", &config, cpu(Kind::Float), 1e-3);
    let expected = init_names(&fixture_tensors("d_adapter_final.safetensors"));
    for (name, tensor) in report.adapter.tensors() {
        assert_close(&tensor, &expected[&name], 1e-3);
    }
}

#[test]
fn parity_d_adamw_8bit() {
    let config = TrainConfig {
        optimizer: Optimizer::AdamW8bit,
        ..settings(&json("d_loss_curve.json")["config"])
    };
    check_curve("plain_token_bnb8", &config, cpu(Kind::Float), 1e-3);
    let all = TrainConfig {
        min_8bit_size: 0,
        ..config
    };
    check_curve("plain_token_bnb8all", &all, cpu(Kind::Float), 1e-3);
}

/// In f32 by the generic path, in bf16 by the engine.
#[test]
fn parity_d_curves_where_there_is_a_gpu() {
    let Some(device) = gpu() else { return };
    let config = settings(&json("d_loss_curve.json")["config"]);
    let eight_bit = TrainConfig {
        optimizer: Optimizer::AdamW8bit,
        min_8bit_size: 0,
        ..config.clone()
    };
    for (kind, tolerance) in [(Kind::Float, 2e-3), (Kind::BFloat16, 3e-2)] {
        let placement = Placement { device, kind };
        check_curve("plain_token_normalised", &config, placement, tolerance);
        check_curve("plain_token_bnb8all", &eight_bit, placement, tolerance);
    }
}
