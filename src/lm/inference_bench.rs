//! Measures the judge and generation over random tokens, and how often a rounded judge chooses as the unrounded one.

use std::ops::ControlFlow;
use std::time::Instant;

use super::cuda::{MemoryPeak, memory_peak, reset_memory_peak};
use super::generate::Generator;
use super::seeds::splitmix64;
use super::{Decoder, GenerateOptions, LmError, ModelConfig, Question, SampleOptions, Scorer};

/// What is generated in a measurement.
#[derive(Clone, Debug)]
pub struct GenerateBench {
    /// Prompts, and how many of them are continued together.
    pub rows: usize,
    pub batch: usize,
    /// Tokens of a prompt and of its continuation, which no token ends.
    pub prompt: usize,
    pub new_tokens: usize,
    pub sample: SampleOptions,
    pub runs: usize,
}

/// What is judged in a measurement.
#[derive(Clone, Debug)]
pub struct JudgeBench {
    pub rows: usize,
    /// Tokens of a prompt behind the shared prefix, and those of the prefix.
    pub prompt: usize,
    pub prefix: usize,
    pub runs: usize,
}

/// Wall-clock times of whole runs, results read by the host included.
#[derive(Clone, Debug)]
pub struct InferenceMeasurement {
    /// Of each run after one that is not counted.
    pub seconds: Vec<f64>,
    /// Of the same prompts with a single new token each: the prompts' share. None for the judge.
    pub prefill_seconds: Option<f64>,
    /// Tokens of a run: new ones of generation, computed ones of the judge.
    pub tokens: u64,
    pub memory: Option<MemoryPeak>,
}

/// # Errors
/// What the work runs into.
pub fn bench_generate(
    config: &ModelConfig,
    decoder: &Decoder,
    bench: &GenerateBench,
) -> Result<InferenceMeasurement, LmError> {
    let prompts = random_prompts(config, bench.rows, bench.prompt, 1);
    let run = |new_tokens: usize| -> Result<(f64, u64), LmError> {
        let options = GenerateOptions {
            max_new_tokens: new_tokens,
            batch_size: bench.batch,
            sample: bench.sample.clone(),
        };
        let generator = Generator {
            decoder,
            config,
            stop_ids: &[],
            options: &options,
        };
        let (mut tokens, mut failure) = (0, None);
        let started = Instant::now();
        generator.run(&prompts, &mut |_, result| match result {
            Ok((ids, _)) => {
                tokens += ids.len() as u64;
                ControlFlow::Continue(())
            }
            Err(error) => {
                failure = Some(error);
                ControlFlow::Break(())
            }
        })?;
        match failure {
            Some(error) => Err(error),
            None => Ok((started.elapsed().as_secs_f64(), tokens)),
        }
    };
    reset_memory_peak(decoder.placement().device);
    let (_, tokens) = run(bench.new_tokens)?;
    let seconds = (0..bench.runs)
        .map(|_| Ok(run(bench.new_tokens)?.0))
        .collect::<Result<_, LmError>>()?;
    let memory = memory_peak(decoder.placement().device);
    run(1)?;
    Ok(InferenceMeasurement {
        seconds,
        prefill_seconds: Some(run(1)?.0),
        tokens,
        memory,
    })
}

/// # Errors
/// What the work runs into.
pub fn bench_judge(
    config: &ModelConfig,
    decoder: &Decoder,
    bench: &JudgeBench,
) -> Result<InferenceMeasurement, LmError> {
    let prefix = random_prompts(config, 1, bench.prefix, 2).swap_remove(0);
    let questions: Vec<Question> = random_prompts(config, bench.rows, bench.prompt, 3)
        .into_iter()
        .map(|rest| Question {
            prompt: [&prefix[..], &rest].concat(),
            answers: vec![vec![5], vec![6]],
        })
        .collect();
    let questions: Vec<&Question> = questions.iter().collect();
    reset_memory_peak(decoder.placement().device);
    let scorer = Scorer::new(decoder, config, None, prefix)?;
    let run = || -> Result<f64, LmError> {
        let started = Instant::now();
        for choice in scorer.choose_many(&questions)? {
            choice?;
        }
        Ok(started.elapsed().as_secs_f64())
    };
    run()?;
    Ok(InferenceMeasurement {
        seconds: (0..bench.runs).map(|_| run()).collect::<Result<_, _>>()?,
        prefill_seconds: None,
        tokens: (bench.rows * bench.prompt) as u64,
        memory: memory_peak(decoder.placement().device),
    })
}

/// How the choices of two precisions compare.
#[derive(Clone, Debug, PartialEq)]
pub struct Agreement {
    pub questions: usize,
    pub same: usize,
    /// The largest difference between the probabilities of a choice.
    pub largest_difference: f64,
}

/// The choices of `decoder` as it is and after `round` has rounded it.
///
/// # Errors
/// What the work runs into.
pub fn judge_agreement(
    config: &ModelConfig,
    decoder: &mut Decoder,
    end_of_turn: Option<i64>,
    questions: &[Question],
    round: impl FnOnce(&mut Decoder) -> Result<(), LmError>,
) -> Result<Agreement, LmError> {
    let all: Vec<&Question> = questions.iter().collect();
    let choose = |decoder: &Decoder| -> Result<Vec<_>, LmError> {
        let scorer = Scorer::new(decoder, config, end_of_turn, Vec::new())?;
        scorer.choose_many(&all)?.into_iter().collect()
    };
    let before = choose(decoder)?;
    round(decoder)?;
    let after = choose(decoder)?;
    let pairs = || before.iter().zip(&after);
    Ok(Agreement {
        questions: questions.len(),
        same: pairs().filter(|(a, b)| a.index == b.index).count(),
        largest_difference: pairs()
            .flat_map(|(a, b)| {
                let (a, b) = (a.shares(), b.shares());
                a.into_iter().zip(b).map(|(a, b)| (a - b).abs())
            })
            .fold(0.0, f64::max),
    })
}

/// Token ids that do not end anything and are the same every time.
fn random_prompts(config: &ModelConfig, rows: usize, length: usize, seed: u64) -> Vec<Vec<i64>> {
    let vocab = config.vocab as u64;
    (0..rows)
        .map(|row| {
            (0..length)
                .map(|at| (splitmix64(seed, (row * length + at) as u64) % vocab) as i64)
                .collect()
        })
        .collect()
}
