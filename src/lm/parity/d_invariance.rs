//! What a training run must not depend on: where it was interrupted, which graphs it kept, how it was batched.

use std::path::Path;

use tch::{Device, Kind, Tensor};

use super::d_training::dataset;
use super::{assert_close, assert_same, tiny};
use crate::lm::backward::{TrainBatch, accumulate_gradient, seed_dropout};
use crate::lm::loss::token_loss;
use crate::lm::{
    Adapter, Batch, Decoder, Example, LmError, LoraConfig, Quantization, Recompute, TrainConfig,
    TrainHooks, TrainReport, causal_varlen, seeds, train_decoder,
};

fn lora() -> LoraConfig {
    LoraConfig {
        r: 4,
        dropout: 0.1,
        ..LoraConfig::default()
    }
}

/// Two epochs of six steps with an evaluation every third.
fn config() -> TrainConfig {
    TrainConfig {
        batch_size: 2,
        gradient_accumulation: 2,
        learning_rate: 5e-3,
        eval_every: 3,
        early_stopping_patience: 0,
        min_8bit_size: 600,
        checkpoint_every: 2,
        ..TrainConfig::default()
    }
}

fn data() -> (Vec<Example>, Vec<Example>) {
    let mut rows = dataset();
    let validation = rows.split_off(rows.len() - 6);
    rows.truncate(24);
    (rows, validation)
}

/// Stops after a number of looks, and on the way copies the checkpoint after a step as a crash would leave it.
#[derive(Default)]
struct Interruption<'a> {
    looks: Option<usize>,
    copy: Option<(u64, &'a Path, &'a Path)>,
}

impl TrainHooks for Interruption<'_> {
    fn step(&mut self, report: &crate::lm::StepReport) {
        if let Some((step, from, to)) = self.copy
            && report.step == step
        {
            let file = "checkpoint.safetensors";
            std::fs::copy(from.join(file), to.join(file)).unwrap();
        }
    }

    fn cancelled(&mut self) -> bool {
        match &mut self.looks {
            None => false,
            Some(0) => true,
            Some(left) => {
                *left -= 1;
                false
            }
        }
    }
}

fn run(
    config: &TrainConfig,
    folder: &Path,
    mut hooks: Interruption,
) -> Result<TrainReport, LmError> {
    let (train, validation) = data();
    let (_, mut decoder) = tiny("qwen3", Kind::Float);
    decoder.quantize(Quantization::Nf4, false).unwrap();
    train_decoder(
        &mut decoder,
        &lora(),
        &train,
        &validation,
        config,
        folder,
        &mut hooks,
    )
}

fn assert_same_run(found: &TrainReport, expected: &TrainReport) {
    assert_eq!(found.curve, expected.curve);
    assert_eq!(found.best, expected.best);
    assert_same(
        &found.adapter.parameters().values(),
        &expected.adapter.parameters().values(),
    );
}

#[test]
fn an_interrupted_run_ends_with_the_same_bits() {
    let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let expected = run(&config(), whole.path(), Interruption::default()).unwrap();
    assert_eq!(expected.curve.len(), 12);
    let evaluated = expected.curve.iter().filter(|row| row.eval_loss.is_some());
    assert_eq!(evaluated.count(), 4);

    // Stops within steps, between them, at the epoch's end and before evaluations alike.
    let mut interruptions = 0;
    let found = loop {
        let hooks = Interruption {
            looks: Some(3),
            copy: None,
        };
        match run(&config(), parts.path(), hooks) {
            Err(LmError::Cancelled) => interruptions += 1,
            outcome => break outcome.unwrap(),
        }
        assert!(interruptions < 100, "makes no progress");
    };
    assert!(interruptions > 5);
    assert!(found.resumed_from.is_some());
    assert_same_run(&found, &expected);
}

#[test]
fn a_killed_run_ends_with_the_same_bits() {
    let (whole, killed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let hooks = Interruption {
        looks: None,
        copy: Some((8, whole.path(), killed.path())),
    };
    let expected = run(&config(), whole.path(), hooks).unwrap();
    // Step 8 is reported before its checkpoint is written: the last one is that of step 6, made before its evaluation.
    let found = run(&config(), killed.path(), Interruption::default()).unwrap();
    assert_eq!(found.resumed_from, Some(6));
    assert_same_run(&found, &expected);
}

#[test]
fn keeping_graphs_or_recomputing_gives_the_same_bits() {
    let reports: Vec<TrainReport> = [Recompute::None, Recompute::Full, Recompute::Auto]
        .map(|recompute| {
            let config = TrainConfig {
                recompute,
                max_steps: Some(3),
                ..config()
            };
            let folder = tempfile::tempdir().unwrap();
            run(&config, folder.path(), Interruption::default()).unwrap()
        })
        .into();
    assert_same_run(&reports[1], &reports[0]);
    assert_same_run(&reports[2], &reports[0]);
}

/// An adapter that already does something, installed for training.
fn trained_adapter(decoder: &mut Decoder) -> Adapter {
    let adapter = Adapter::new(decoder, &lora(), 0, 1).unwrap();
    let mut values = adapter.parameters().values();
    let noise = seeds::uniform(2, "noise", values.numel(), 0.05);
    values += Tensor::from_slice(&noise);
    adapter.install(decoder, true).unwrap();
    adapter
}

fn gradient(decoder: &Decoder, adapter: &Adapter, examples: &[&Example], kept: usize) -> Tensor {
    let _ = adapter.parameters().gradients().zero_();
    let batch = TrainBatch::pack(examples, decoder);
    accumulate_gradient(decoder, adapter, &batch, 5, kept).unwrap();
    adapter.parameters().gradients().copy()
}

/// The gradient by one graph over the whole model.
fn whole_graph_gradient(decoder: &Decoder, adapter: &Adapter, examples: &[&Example]) -> Tensor {
    let _ = adapter.parameters().gradients().zero_();
    let sequences: Vec<&[i64]> = examples.iter().map(|example| &example.ids[..]).collect();
    let batch = Batch::pack(&sequences, Device::Cpu);
    let (mut rows, mut targets, mut start) = (Vec::new(), Vec::new(), 0);
    for example in examples {
        for index in 1..example.ids.len() {
            if example.labels[index] >= 0 {
                rows.push(start + index as i64 - 1);
                targets.push(example.labels[index]);
            }
        }
        start += example.ids.len() as i64;
    }
    let rotary = decoder.rotary(&batch.positions);
    let mut x = decoder.embed(&batch.ids);
    for (index, layer) in decoder.layers().iter().enumerate() {
        seed_dropout(layer, 5, index);
        x = layer.forward(&x, &rotary, |q, k, v| {
            causal_varlen(q, k, v, &batch.cu_seqlens)
        });
    }
    let normed = decoder.norm(&x.index_select(0, &Tensor::from_slice(&rows)));
    let loss = token_loss(decoder, &normed, &Tensor::from_slice(&targets), true).unwrap();
    let surrogate = (&normed * loss.gradient.unwrap()).sum(Kind::Float);
    let leaves: Vec<&Tensor> = decoder
        .layers()
        .iter()
        .flat_map(|layer| layer.linears())
        .flat_map(|linear| linear.update().unwrap().leaves())
        .collect();
    let gradients = Tensor::run_backward(&[surrogate], &leaves, false, false);
    let per_layer = leaves.len() / decoder.layers().len();
    for (layer, gradients) in gradients.chunks(per_layer).enumerate() {
        adapter.accumulate(layer, gradients).unwrap();
    }
    adapter.parameters().gradients().copy()
}

#[test]
fn segments_give_the_bits_of_one_graph() {
    for kind in [Kind::Float, Kind::BFloat16] {
        let (_, mut decoder) = tiny("qwen3", kind);
        let adapter = trained_adapter(&mut decoder);
        let examples = dataset();
        let examples: Vec<&Example> = examples.iter().take(3).collect();
        let expected = whole_graph_gradient(&decoder, &adapter, &examples);
        assert!(expected.abs().max().double_value(&[]) > 0.0);
        for kept in 0..=decoder.layers().len() {
            let found = gradient(&decoder, &adapter, &examples, kept);
            assert_same(&found, &expected);
        }
    }
}

#[test]
fn packing_does_not_leak() {
    let (_, mut decoder) = tiny("llama", Kind::Float);
    let adapter = trained_adapter(&mut decoder);
    adapter.install(&mut decoder, false).unwrap();
    let examples = dataset();
    let examples: Vec<&Example> = examples.iter().take(4).collect();
    let packed = gradient(&decoder, &adapter, &examples, 0);
    let separate: Tensor = examples
        .iter()
        .map(|example| gradient(&decoder, &adapter, &[*example], 0))
        .sum();
    let scale = separate.abs().max().double_value(&[]);
    assert_close(&packed, &separate, 1e-5 * scale);
}

#[test]
fn packed_weights_give_the_bits_of_decoded_ones() {
    for quantization in [Quantization::Nf4, Quantization::Int8] {
        let logits = [false, true].map(|packed| {
            let (_, mut decoder) = tiny("qwen3", Kind::BFloat16);
            decoder.quantize(quantization, packed).unwrap();
            let batch = Batch::pack(&[&dataset()[0].ids], Device::Cpu);
            decoder.logits(&decoder.forward(&batch))
        });
        assert_same(&logits[0], &logits[1]);
    }
}

#[test]
fn an_infinite_loss_stops_with_the_step_and_the_rows() {
    let config = TrainConfig {
        learning_rate: 1e30,
        warmup_ratio: 0.0,
        max_grad_norm: 1e30,
        ..config()
    };
    let folder = tempfile::tempdir().unwrap();
    let error = run(&config, folder.path(), Interruption::default())
        .err()
        .unwrap();
    let LmError::NonFinite { step, rows, .. } = &error else {
        panic!("{error}");
    };
    assert_eq!(*step, 2);
    assert!(!rows.is_empty());
}

#[test]
fn without_improvement_training_stops_and_the_best_adapter_returns() {
    let config = TrainConfig {
        learning_rate: 0.5,
        eval_every: 1,
        early_stopping_patience: 2,
        ..config()
    };
    let folder = tempfile::tempdir().unwrap();
    let report = run(&config, folder.path(), Interruption::default()).unwrap();
    let best = report.best.unwrap();
    assert!(report.stopped_early);
    assert_eq!(report.curve.len() as u64, best.step + 2);
    let losses: Vec<f64> = report
        .curve
        .iter()
        .filter_map(|row| row.eval_loss)
        .collect();
    assert!(losses.iter().all(|loss| *loss >= best.loss));
}

#[test]
fn another_configuration_does_not_continue_a_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let hooks = Interruption {
        looks: Some(5),
        copy: None,
    };
    assert!(matches!(
        run(&config(), folder.path(), hooks),
        Err(LmError::Cancelled)
    ));
    let other = TrainConfig {
        learning_rate: 1e-4,
        ..config()
    };
    let error = run(&other, folder.path(), Interruption::default())
        .err()
        .unwrap();
    assert!(matches!(error, LmError::Checkpoint { .. }), "{error}");
}
