//! Measures training steps: the same loop, batches and kernels as [`super::train`], over random tokens.

use tch::{Device, Tensor};

use super::cuda::{MemoryPeak, PartTimes, memory_peak, reset_memory_peak};
use super::train_run::{Progress, Run};
use super::{
    Adapter, Decoder, Example, LmError, LoraConfig, ModelConfig, StepReport, TrainConfig,
    TrainHooks, seeds,
};

/// What is measured.
#[derive(Clone, Debug)]
pub struct TrainBench {
    pub lora: LoraConfig,
    /// `batch_size`, `gradient_accumulation`, `recompute`, `memory_limit` and `deterministic` count.
    pub config: TrainConfig,
    /// Tokens of the shortest and the longest sequence, all lengths between equally likely.
    pub lengths: (usize, usize),
    /// Steps that are measured, after two that are not.
    pub steps: usize,
    /// One more step, with the time of each part.
    pub profile: bool,
}

/// What was found.
#[derive(Debug)]
pub struct TrainMeasurement {
    /// Tokens and seconds of each step.
    pub steps: Vec<(u64, f64)>,
    /// The loss of each step, warm-up included.
    pub losses: Vec<f64>,
    /// The trained parameters, f32 and flat, on the CPU.
    pub parameters: Tensor,
    /// None without a GPU.
    pub memory: Option<MemoryPeak>,
    pub parts: Option<PartTimes>,
    /// The most tokens of a pass, and the layers that keep what their backward pass needs (None on the generic path).
    pub max_tokens: u64,
    pub kept: Option<usize>,
    /// Floating-point operations of a step's token, on average (see [`flops_per_token`]).
    pub flops_per_token: f64,
    /// What the trainer said.
    pub log: Vec<String>,
}

/// Steps before the measured ones.
const WARM_UP: usize = 2;

#[derive(Default)]
struct Hooks {
    reports: Vec<StepReport>,
    log: Vec<String>,
}

impl TrainHooks for Hooks {
    fn step(&mut self, report: &StepReport) {
        self.reports.push(report.clone());
    }

    fn log(&mut self, line: &str) {
        self.log.push(line.to_owned());
    }
}

/// Trains on random tokens and reports how long each step took.
///
/// # Errors
/// Those of [`super::train`].
pub fn bench_train(
    model: &ModelConfig,
    decoder: &mut Decoder,
    bench: &TrainBench,
) -> Result<TrainMeasurement, LmError> {
    let device = decoder.placement().device;
    let steps = WARM_UP + bench.steps + usize::from(bench.profile);
    let config = TrainConfig {
        max_steps: Some(steps),
        packing: false,
        ..bench.config.clone()
    };
    config.validate()?;
    let per_step = config.batch_size * config.gradient_accumulation;
    let examples = random_examples(per_step * steps, bench.lengths, model.vocab);
    let adapter = Adapter::new(decoder, &bench.lora, config.min_8bit_size, 1)?;
    reset_memory_peak(device);
    let mut hooks = Hooks::default();
    let mut run = Run::new(adapter, &examples, &[], &config, decoder, &mut hooks)?;
    run.install(decoder, true)?;
    let mut parts = None;
    for step in 0..steps {
        let profiled = bench.profile && step + 1 == steps;
        if profiled && let Some(gpu) = run.gpu_mut() {
            gpu.engine_mut().profile(true);
        }
        if let Progress::Finished = run.advance(decoder, &mut hooks)? {
            break;
        }
        if profiled && let Some(gpu) = run.gpu_mut() {
            let profile = gpu.engine_mut().profiled().map(|profile| profile.take());
            parts = profile.transpose()?;
            gpu.engine_mut().profile(false);
        }
    }
    let tokens: usize = examples.iter().map(|example| example.ids.len()).sum();
    let squares: usize = examples
        .iter()
        .map(|example| example.ids.len().pow(2))
        .sum();
    let measured = hooks.reports.iter().skip(WARM_UP).take(bench.steps);
    Ok(TrainMeasurement {
        steps: measured
            .map(|report| {
                (
                    report.processed,
                    report.processed as f64 / report.tokens_per_second,
                )
            })
            .collect(),
        losses: hooks.reports.iter().map(|report| report.loss).collect(),
        parameters: run
            .adapter()
            .parameters()
            .values()
            .f_to_device(Device::Cpu)?,
        memory: memory_peak(device),
        parts,
        max_tokens: run.max_tokens(),
        kept: run.gpu_mut().map(|gpu| gpu.kept()),
        flops_per_token: flops_per_token(model, &bench.lora, squares as f64 / tokens as f64),
        log: hooks.log,
    })
}

/// Operations that a token's loss and gradient need, a multiplication and an addition counted as two, without what is
/// computed twice: 4 per weight of the frozen linear layers and of the head (forward, and the gradient of the input), 6
/// per parameter of the adapter (its own gradient too), and 6 · s · q per layer for causal attention over sequences of s
/// tokens with queries of q elements.
fn flops_per_token(model: &ModelConfig, lora: &LoraConfig, mean_length: f64) -> f64 {
    let (hidden, wide) = (model.hidden as f64, model.intermediate as f64);
    let (q, kv) = (model.q_dim() as f64, model.kv_dim() as f64);
    let shapes = [
        ("q_proj", hidden, q),
        ("k_proj", hidden, kv),
        ("v_proj", hidden, kv),
        ("o_proj", q, hidden),
        ("gate_proj", hidden, wide),
        ("up_proj", hidden, wide),
        ("down_proj", wide, hidden),
    ];
    let frozen: f64 = shapes.iter().map(|(_, inner, out)| inner * out).sum();
    let low: f64 = shapes
        .iter()
        .filter(|(name, ..)| lora.covers(name))
        .map(|(_, inner, out)| lora.r as f64 * (inner + out))
        .sum();
    let layer = 4.0 * frozen + 6.0 * low + 6.0 * mean_length * q;
    model.layers as f64 * layer + 4.0 * hidden * model.vocab as f64
}

/// Every token but the first of each example is trained.
fn random_examples(count: usize, (shortest, longest): (usize, usize), vocab: i64) -> Vec<Example> {
    let pick = |seed: u64, index: u64, below: usize| {
        (seeds::splitmix64(seed, index) % below.max(1) as u64) as usize
    };
    (0..count)
        .map(|row| {
            let length = shortest + pick(1, row as u64, longest - shortest + 1);
            let ids: Vec<i64> = (0..length)
                .map(|place| pick(row as u64 + 2, place as u64, vocab as usize) as i64)
                .collect();
            Example {
                id: row.to_string(),
                labels: ids.clone(),
                ids,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_work_of_qwen3_4b_is_the_known_one() {
        let shape = super::super::random_model::shape("qwen3-4b").unwrap();
        let flops = flops_per_token(&shape, &LoraConfig::default(), 1024.0);
        // 4.02 G frozen weights and 33.0 M of the adapter, plus attention.
        assert!((16.0e9..17.5e9).contains(&flops), "{flops}");
    }

    #[test]
    fn examples_have_the_lengths_asked_for() {
        let examples = random_examples(200, (3, 6), 50);
        let lengths: Vec<usize> = examples.iter().map(|example| example.ids.len()).collect();
        assert!((3..=6).all(|length| lengths.contains(&length)));
        let ids = examples.iter().flat_map(|example| &example.ids);
        assert!(ids.into_iter().all(|id| (0..50).contains(id)));
    }
}
