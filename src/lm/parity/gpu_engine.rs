//! The engine of a GPU against the generic path in f32 on the same device.

use tch::{Device, Kind, Tensor};

use super::d_training::dataset;
use super::{FAMILIES, assert_same, cpu, gpu, tiny_at};
use crate::lm::backward::{TrainBatch, accumulate_gradient, evaluate};
use crate::lm::cuda::{EngineOptions, Fit, TrainEngine, multiplies_e4m3, unsuitable};
use crate::lm::{
    Adapter, Compute, Decoder, Example, LmError, LoraConfig, Placement, Quantization, TrainConfig,
    TrainHooks, TrainReport, seeds, train_decoder,
};

fn decoder(family: &str, kind: Kind, device: Device, quantization: Quantization) -> Decoder {
    let (_, mut decoder) = tiny_at(family, Placement { device, kind });
    decoder.quantize(quantization, true).unwrap();
    decoder
}

/// An adapter that already does something.
fn adapter(decoder: &Decoder, config: &LoraConfig) -> Adapter {
    let adapter = Adapter::new(decoder, config, 0, 1).unwrap();
    let mut values = adapter.parameters().values();
    let noise = seeds::uniform(2, "noise", values.numel(), 0.05);
    values += Tensor::from_slice(&noise).to_device(values.device());
    adapter
}

fn generic(decoder: &mut Decoder, adapter: &Adapter, examples: &[&Example]) -> (f64, Vec<Tensor>) {
    let _ = adapter.parameters().gradients().zero_();
    adapter.install(decoder, true).unwrap();
    let batch = TrainBatch::pack(examples, decoder);
    let loss = accumulate_gradient(decoder, adapter, &batch, 5, 1).unwrap();
    (loss, gradients(adapter))
}

fn gradients(adapter: &Adapter) -> Vec<Tensor> {
    let slots = 0..adapter.parameters().slots().len();
    slots
        .map(|slot| {
            adapter
                .parameters()
                .gradient(slot)
                .to_kind(Kind::Double)
                .copy()
        })
        .collect()
}

/// The largest relative error of a tensor.
fn error(found: &[Tensor], expected: &[Tensor]) -> f64 {
    let errors = found
        .iter()
        .zip(expected)
        .map(|(found, expected)| ((found - expected).norm() / expected.norm()).double_value(&[]));
    errors.fold(0.0, f64::max)
}

#[test]
fn the_engine_gives_the_generic_gradient_where_there_is_a_gpu() {
    let Some(device) = gpu() else { return };
    let rows = dataset();
    let examples: Vec<&Example> = rows.iter().take(5).collect();
    for family in FAMILIES {
        for (r, dropout, quantization, targets) in [
            (8, 0.0, Quantization::None, None),
            (16, 0.1, Quantization::Nf4, None),
            (
                8,
                0.1,
                Quantization::Int8,
                Some(["q_proj", "v_proj", "down_proj"]),
            ),
        ] {
            let mut config = LoraConfig {
                r,
                dropout,
                ..LoraConfig::default()
            };
            if let Some(targets) = targets {
                config.targets = targets.map(str::to_owned).to_vec();
            }
            let mut exact = decoder(family, Kind::Float, device, quantization);
            let reference = adapter(&exact, &config);
            let (loss, expected) = generic(&mut exact, &reference, &examples);

            let mut rounded = decoder(family, Kind::BFloat16, device, quantization);
            let plain = adapter(&rounded, &config);
            let plain_error = error(&generic(&mut rounded, &plain, &examples).1, &expected);

            let mut rounded = decoder(family, Kind::BFloat16, device, quantization);
            let fused = adapter(&rounded, &config);
            assert_eq!(unsuitable(&rounded, &fused, false), None);
            let layers = rounded.layers().len();
            // Decoded once, and at each use.
            for budget in [u64::MAX, 0] {
                let mut found = Vec::new();
                for kept in [layers, 0] {
                    let options = EngineOptions {
                        deterministic: true,
                        fp8: false,
                        budget,
                    };
                    let engine = TrainEngine::new(&mut rounded, &fused, options).unwrap();
                    let fit = Fit {
                        max_tokens: u64::MAX,
                        kept,
                        head_bytes: 0,
                    };
                    let _ = fused.parameters().gradients().zero_();
                    let batch = TrainBatch::pack(&examples, &rounded);
                    let sum = tch::no_grad(|| {
                        let batch = batch.for_engine(&rounded);
                        engine
                            .accumulate(&rounded, &fused, &batch, 5, &fit)
                            .unwrap()
                    });
                    let sum = sum.double_value(&[]);
                    assert!((sum / loss - 1.0).abs() < 2e-2, "{family}: {sum} {loss}");
                    found.push(gradients(&fused));

                    let evaluated = tch::no_grad(|| {
                        let batch = batch.for_engine(&rounded);
                        engine.evaluate(&rounded, &fused, &batch, 0).unwrap()
                    });
                    reference.install(&mut exact, false).unwrap();
                    let exactly = evaluate(&exact, &TrainBatch::pack(&examples, &exact)).unwrap();
                    let evaluated = evaluated.double_value(&[]);
                    if dropout == 0.0 {
                        assert_eq!(evaluated, sum);
                    }
                    assert!(
                        (evaluated / exactly - 1.0).abs() < 2e-2,
                        "{family}, r {r}: {evaluated} {exactly}"
                    );
                }
                let fused_error = error(&found[0], &expected);
                #[expect(clippy::print_stderr, reason = "shows how near the two are")]
                {
                    eprintln!(
                        "{family}, r {r}: {fused_error:.4}, generic in bf16 {plain_error:.4}"
                    );
                }
                assert!(
                    fused_error < (1.5 * plain_error).max(2e-2),
                    "{family}, r {r}: {fused_error}, the generic path in bf16 {plain_error}"
                );
                for (kept, recomputed) in found[0].iter().zip(&found[1]) {
                    assert_eq!(kept, recomputed);
                }
            }
        }
    }
}

/// Gradients and the loss of evaluation in e4m3, beside those in bf16 of the same engine.
#[test]
fn the_engine_in_fp8_is_near_its_bf16_or_is_skipped_without_a_gpu() {
    let Some(device) = gpu() else { return };
    let rows = dataset();
    let examples: Vec<&Example> = rows.iter().take(5).collect();
    for (family, targets) in [
        ("qwen3", None),
        ("llama", None),
        ("qwen3", Some(["q_proj", "up_proj"])),
    ] {
        let mut config = LoraConfig {
            r: 16,
            dropout: 0.1,
            ..LoraConfig::default()
        };
        if let Some(targets) = targets {
            config.targets = targets.map(str::to_owned).to_vec();
        }
        let mut decoder = decoder(family, Kind::BFloat16, device, Quantization::Nf4);
        if !multiplies_e4m3(decoder.placement()) {
            return;
        }
        let adapter = adapter(&decoder, &config);
        assert_eq!(unsuitable(&decoder, &adapter, true), None);
        let layers = decoder.layers().len();
        let mut found = Vec::new();
        for (fp8, kept) in [(false, layers), (true, layers), (true, 0)] {
            let options = EngineOptions {
                deterministic: true,
                fp8,
                budget: u64::MAX,
            };
            let engine = TrainEngine::new(&mut decoder, &adapter, options).unwrap();
            let fit = Fit {
                max_tokens: u64::MAX,
                kept,
                head_bytes: 0,
            };
            let _ = adapter.parameters().gradients().zero_();
            let batch = TrainBatch::pack(&examples, &decoder);
            let losses = tch::no_grad(|| {
                let batch = batch.for_engine(&decoder);
                let trained = engine.accumulate(&decoder, &adapter, &batch, 5, &fit);
                let evaluated = engine.evaluate(&decoder, &adapter, &batch, 0);
                [trained, evaluated].map(|loss| loss.unwrap().double_value(&[]))
            });
            found.push((losses, gradients(&adapter)));
        }
        let [(plain, expected), (rounded, near), (again, same)] = &found[..] else {
            unreachable!("three runs")
        };
        assert_eq!((rounded, near), (again, same));
        for (rounded, plain) in rounded.iter().zip(plain) {
            assert!((rounded / plain - 1.0).abs() < 2e-2, "{rounded} {plain}");
        }
        let error = error(near, expected);
        #[expect(clippy::print_stderr, reason = "shows how near the two are")]
        {
            eprintln!("{family}: fp8 {error:.4}, {rounded:?} against {plain:?}");
        }
        // Half a step of e4m3 is up to 6 % of a number. Products of few random terms cancel, so that it grows on the way to the
        // first layer; a wrong scale or transposition gives more than 1.
        assert!(error < 0.45, "{family}: {error}");
        assert!(error > 1e-3, "{family}: nothing was rounded");
    }
}

#[test]
fn fp8_on_a_cpu_is_one_clear_error() {
    let (_, mut decoder) = tiny_at("qwen3", cpu(Kind::Float));
    let config = TrainConfig {
        compute: Compute::Fp8,
        ..TrainConfig::default()
    };
    let folder = tempfile::tempdir().unwrap();
    let (rows, lora) = (dataset(), LoraConfig::default());
    let (folder, mut hooks) = (folder.path(), Stop(None));
    let result = train_decoder(&mut decoder, &lora, &rows, &[], &config, folder, &mut hooks);
    let Err(error) = result else {
        panic!("trains on a CPU");
    };
    insta::assert_snapshot!(error, @"no training with `compute: fp8`: the model is on the CPU");
}

/// Stops after a number of looks.
struct Stop(Option<usize>);

impl TrainHooks for Stop {
    fn cancelled(&mut self) -> bool {
        self.0.as_mut().is_some_and(|left| match left {
            0 => true,
            _ => {
                *left -= 1;
                false
            }
        })
    }
}

/// A run on the GPU with a deterministic engine; `looks`: when it is stopped, again and again.
fn run(device: Device, config: &TrainConfig, looks: Option<usize>) -> TrainReport {
    let mut rows = dataset();
    let validation = rows.split_off(rows.len() - 6);
    rows.truncate(24);
    let lora = LoraConfig {
        r: 8,
        dropout: 0.1,
        ..LoraConfig::default()
    };
    let folder = tempfile::tempdir().unwrap();
    for _ in 0..100 {
        let mut decoder = decoder("qwen3", Kind::BFloat16, device, Quantization::Nf4);
        let (folder, mut hooks) = (folder.path(), Stop(looks));
        match train_decoder(
            &mut decoder,
            &lora,
            &rows,
            &validation,
            config,
            folder,
            &mut hooks,
        ) {
            Err(LmError::Cancelled) => {}
            outcome => return outcome.unwrap(),
        }
    }
    panic!("makes no progress");
}

#[test]
fn an_interrupted_run_ends_with_the_same_bits_where_there_is_a_gpu() {
    let Some(device) = gpu() else { return };
    let config = TrainConfig {
        batch_size: 2,
        gradient_accumulation: 2,
        learning_rate: 5e-3,
        eval_every: 3,
        early_stopping_patience: 0,
        min_8bit_size: 600,
        checkpoint_every: 2,
        deterministic: true,
        ..TrainConfig::default()
    };
    let expected = run(device, &config, None);
    assert_eq!(expected.curve.len(), 12);
    assert!(expected.curve[11].loss < expected.curve[0].loss);
    let found = run(device, &config, Some(3));
    assert!(found.resumed_from.is_some());
    assert_eq!(found.curve, expected.curve);
    assert_same(
        &found.adapter.parameters().values(),
        &expected.adapter.parameters().values(),
    );
}

#[test]
fn an_infinite_loss_leaves_the_parameters_where_there_is_a_gpu() {
    let Some(device) = gpu() else { return };
    let config = TrainConfig {
        learning_rate: 1e30,
        warmup_ratio: 0.0,
        max_grad_norm: 1e30,
        max_steps: Some(4),
        ..TrainConfig::default()
    };
    let mut decoder = decoder("qwen3", Kind::BFloat16, device, Quantization::None);
    let folder = tempfile::tempdir().unwrap();
    let rows = dataset();
    let error = train_decoder(
        &mut decoder,
        &LoraConfig::default(),
        &rows,
        &[],
        &config,
        folder.path(),
        &mut Stop(None),
    );
    let Err(LmError::NonFinite { step, rows, .. }) = error else {
        panic!("trains on");
    };
    assert_eq!(step, 2);
    assert!(!rows.is_empty());
}

/// Takes all memory before the second pass and gives it back when the trainer says that it goes on.
#[derive(Default)]
struct Hog {
    taken: Vec<Tensor>,
    device: Option<Device>,
    looks: u32,
    log: Vec<String>,
}

impl TrainHooks for Hog {
    fn cancelled(&mut self) -> bool {
        self.looks += 1;
        // The first pass has made the libraries' own allocations, which nothing here could relieve.
        let Some(device) = self.device.take_if(|_| self.looks == 2) else {
            return false;
        };
        for size in [1 << 30, 1 << 27, 1 << 24, 1 << 21, 1 << 18, 1 << 9] {
            while let Ok(tensor) = Tensor::f_empty([size], (Kind::Uint8, device)) {
                self.taken.push(tensor);
            }
        }
        false
    }

    fn log(&mut self, line: &str) {
        self.taken.clear();
        self.log.push(line.to_owned());
    }
}

#[test]
#[ignore = "takes all memory of the GPU: run it alone"]
fn memory_that_runs_out_in_a_step_is_lived_with_where_there_is_a_gpu() {
    let Some(device) = gpu() else { return };
    let config = TrainConfig {
        batch_size: 4,
        gradient_accumulation: 1,
        max_steps: Some(2),
        ..TrainConfig::default()
    };
    let mut decoder = decoder("qwen3", Kind::BFloat16, device, Quantization::Nf4);
    let folder = tempfile::tempdir().unwrap();
    let (rows, lora) = (dataset(), LoraConfig::default());
    let mut hog = Hog {
        device: Some(device),
        ..Hog::default()
    };
    let (folder, none) = (folder.path(), &[]);
    let report = train_decoder(&mut decoder, &lora, &rows, none, &config, folder, &mut hog);
    assert_eq!(report.unwrap().curve.len(), 2);
    assert!(hog.log[0].contains("continuing with less"), "{:?}", hog.log);
}
