//! Measures sentence embeddings.

use std::time::Instant;

use super::cuda::{MemoryPeak, memory_peak, reset_memory_peak};
use super::{Embedder, LmError};

/// Wall-clock times of whole runs, vectors read by the host included.
#[derive(Clone, Debug)]
pub struct EmbeddingMeasurement {
    /// Of each run after one that is not counted.
    pub seconds: Vec<f64>,
    /// Of tokenising alone, which each run does too.
    pub tokenize_seconds: Vec<f64>,
    /// Tokens of a run.
    pub tokens: u64,
    pub memory: Option<MemoryPeak>,
}

/// # Errors
/// What the work runs into.
pub fn bench_embed<S: AsRef<str> + Sync>(
    embedder: &Embedder,
    texts: &[S],
    runs: usize,
) -> Result<EmbeddingMeasurement, LmError> {
    fn timed<T>(work: impl FnOnce() -> Result<T, LmError>) -> Result<f64, LmError> {
        let started = Instant::now();
        work()?;
        Ok(started.elapsed().as_secs_f64())
    }
    let device = embedder.placement().device;
    let tokens = embedder
        .tokenize(texts)?
        .iter()
        .map(Vec::len)
        .sum::<usize>();
    let run = || timed(|| embedder.embed(texts, &mut |_| Ok::<_, LmError>(())));
    reset_memory_peak(device);
    run()?;
    let seconds = (0..runs).map(|_| run()).collect::<Result<_, _>>()?;
    Ok(EmbeddingMeasurement {
        seconds,
        tokenize_seconds: (0..runs)
            .map(|_| timed(|| embedder.tokenize(texts)))
            .collect::<Result<_, _>>()?,
        tokens: tokens as u64,
        memory: memory_peak(device),
    })
}
