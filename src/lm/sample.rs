//! From logits to the next token: the processors of transformers' `generate`, in its order, then greedy choice or
//! sampling.

use std::collections::BTreeSet;

use tch::{Device, Kind, Tensor};

/// How the next token is chosen. The default is greedy without any processor.
#[derive(Clone, Debug, PartialEq)]
pub struct SampleOptions {
    /// Divides positive and multiplies negative logits of tokens already seen, prompt included; 1 is off (arXiv:1909.05858).
    pub repetition_penalty: f64,
    /// No n-gram of this size occurs twice, prompt included; 0 is off.
    pub no_repeat_ngram: usize,
    /// No stop token before this many new tokens.
    pub min_new_tokens: usize,
    /// 0 is greedy; the three options below then have no effect.
    pub temperature: f64,
    /// Keeps the k most likely tokens; 0 is off.
    pub top_k: usize,
    /// Keeps the most likely tokens that together reach this probability; 1 is off (arXiv:1904.09751).
    pub top_p: f64,
    pub seed: u64,
}

impl Default for SampleOptions {
    fn default() -> Self {
        Self {
            repetition_penalty: 1.0,
            no_repeat_ngram: 0,
            min_new_tokens: 0,
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            seed: 0,
        }
    }
}

/// What the processors know of one row.
pub(super) struct History<'a> {
    /// Prompt and new tokens.
    pub(super) ids: &'a [i64],
    pub(super) new_tokens: usize,
    /// From [`row_seed`].
    pub(super) seed: [u8; 32],
}

/// The random stream of a row. It depends on nothing but the seed and the prompt, so a text does not change with the
/// rows that happen to be computed beside it.
pub(super) fn row_seed(seed: u64, prompt: &[i64]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    for id in prompt {
        hasher.update(&id.to_le_bytes());
    }
    *hasher.finalize().as_bytes()
}

impl SampleOptions {
    fn greedy(&self) -> bool {
        self.temperature <= 0.0
    }

    /// The next token of each row: i64 [B] on the CPU. `logits`: [B, vocab].
    pub(super) fn next_tokens(
        &self,
        logits: &Tensor,
        rows: &[History<'_>],
        stop_ids: &[i64],
    ) -> Tensor {
        let scores = self.process(&logits.to_kind(Kind::Float), rows, stop_ids);
        let chosen = if self.greedy() {
            scores.argmax(1, false)
        } else {
            draw(&scores, rows)
        };
        chosen.to_device(Device::Cpu)
    }

    /// All processors in order. f32 [B, vocab] → the same; refused tokens become −∞.
    fn process(&self, logits: &Tensor, rows: &[History<'_>], stop_ids: &[i64]) -> Tensor {
        let mut scores = logits.shallow_clone();
        if self.repetition_penalty != 1.0 {
            scores = repetition_penalty(&scores, rows, self.repetition_penalty);
        }
        if self.no_repeat_ngram > 0 {
            scores = no_repeat_ngram(&scores, rows, self.no_repeat_ngram);
        }
        if self.min_new_tokens > 0 {
            scores = min_new_tokens(&scores, rows, self.min_new_tokens, stop_ids);
        }
        if self.greedy() {
            return scores;
        }
        if self.temperature != 1.0 {
            scores = &scores / self.temperature;
        }
        if self.top_k > 0 {
            scores = top_k(&scores, self.top_k);
        }
        if self.top_p < 1.0 {
            scores = top_p(&scores, self.top_p);
        }
        scores
    }
}

/// Pairs (row, token) as index tensors on `device`.
fn pairs(pairs: &[(i64, i64)], device: Device) -> [Option<Tensor>; 2] {
    let (rows, ids): (Vec<i64>, Vec<i64>) = pairs.iter().copied().unzip();
    [rows, ids].map(|index| Some(Tensor::from_slice(&index).to_device(device)))
}

fn repetition_penalty(scores: &Tensor, rows: &[History<'_>], penalty: f64) -> Tensor {
    let seen: Vec<(i64, i64)> = (0..)
        .zip(rows)
        .flat_map(|(row, history)| {
            history
                .ids
                .iter()
                .collect::<BTreeSet<_>>()
                .into_iter()
                .map(move |&id| (row, id))
        })
        .collect();
    let index = pairs(&seen, scores.device());
    let found = scores.index(&index);
    let penalised = (&found * penalty).where_self(&found.lt(0.0), &(&found / penalty));
    scores.index_put(&index, &penalised, false)
}

fn no_repeat_ngram(scores: &Tensor, rows: &[History<'_>], size: usize) -> Tensor {
    let mut banned = Vec::new();
    for (row, history) in (0..).zip(rows) {
        let ids = history.ids;
        // Fewer tokens than an n-gram: none can be repeated.
        if ids.len() + 1 < size {
            continue;
        }
        let last = &ids[ids.len() + 1 - size..];
        banned.extend(
            ids.windows(size)
                .filter(|ngram| ngram[..size - 1] == *last)
                .map(|ngram| (row, ngram[size - 1])),
        );
    }
    refuse(scores, &banned)
}

fn min_new_tokens(
    scores: &Tensor,
    rows: &[History<'_>],
    minimum: usize,
    stop_ids: &[i64],
) -> Tensor {
    let early = (0..)
        .zip(rows)
        .filter(|(_, history)| history.new_tokens < minimum);
    let banned: Vec<(i64, i64)> = early
        .flat_map(|(row, _)| stop_ids.iter().map(move |&id| (row, id)))
        .collect();
    refuse(scores, &banned)
}

fn refuse(scores: &Tensor, banned: &[(i64, i64)]) -> Tensor {
    if banned.is_empty() {
        return scores.shallow_clone();
    }
    let index = pairs(banned, scores.device());
    let value = Tensor::full([1], f64::NEG_INFINITY, (Kind::Float, scores.device()));
    scores.index_put(&index, &value, false)
}

fn top_k(scores: &Tensor, k: usize) -> Tensor {
    let k = i64::try_from(k).unwrap_or(i64::MAX).min(scores.size()[1]);
    let (kept, _) = scores.topk(k, 1, true, true);
    let threshold = kept.narrow(1, k - 1, 1);
    scores.masked_fill(&scores.lt_tensor(&threshold), f64::NEG_INFINITY)
}

fn top_p(scores: &Tensor, p: f64) -> Tensor {
    // Stable, so that of equals the first go first, on any device.
    let (sorted, order) = scores.sort_stable(true, 1, false);
    let cumulative = sorted.softmax(1, Kind::Float).cumsum(1, Kind::Float);
    let removed = cumulative.le(1.0 - p);
    // The most likely token always stays.
    let _ = removed.narrow(1, -1, 1).fill_(0);
    let removed = removed.scatter(1, &order, &removed);
    scores.masked_fill(&removed, f64::NEG_INFINITY)
}

/// Draws from the softmax of each row by inverting its cumulative distribution. Returns i64 [B].
fn draw(scores: &Tensor, rows: &[History<'_>]) -> Tensor {
    let uniform: Vec<f64> = rows
        .iter()
        .map(|row| uniform(&row.seed, row.new_tokens))
        .collect();
    let uniform = Tensor::from_slice(&uniform)
        .to_device(scores.device())
        .unsqueeze(1);
    let cumulative = scores.softmax(1, Kind::Double).cumsum(1, Kind::Double);
    let total = cumulative.narrow(1, -1, 1);
    // The first token whose cumulative probability exceeds the draw; refused tokens add nothing and are passed over.
    cumulative
        .le_tensor(&(uniform * total))
        .sum_dim_intlist(1, false, Kind::Int64)
}

/// Uniform in [0, 1), a function of the row's seed and the number of new tokens it has.
pub(super) fn uniform(seed: &[u8; 32], new_tokens: usize) -> f64 {
    let hash = blake3::keyed_hash(seed, &(new_tokens as u64).to_le_bytes());
    let mut bits = [0; 8];
    bits.copy_from_slice(&hash.as_bytes()[..8]);
    (u64::from_le_bytes(bits) >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
impl SampleOptions {
    /// For parity tests: the processed logits, and their softmax.
    pub(super) fn processed(
        &self,
        logits: &Tensor,
        rows: &[History<'_>],
        stop_ids: &[i64],
    ) -> Tensor {
        self.process(logits, rows, stop_ids)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(ids: &[i64], new_tokens: usize, seed: u64) -> History<'_> {
        History {
            ids,
            new_tokens,
            seed: row_seed(seed, ids),
        }
    }

    #[test]
    fn sampling_follows_the_distribution() {
        let logits = Tensor::from_slice(&[0.1_f32, 0.6, 0.3]).log().unsqueeze(0);
        let options = SampleOptions {
            temperature: 1.0,
            ..Default::default()
        };
        let mut counts = [0; 3];
        for step in 0..4000 {
            let row = history(&[1], step, 7);
            let token = options.next_tokens(&logits, &[row], &[]).int64_value(&[0]);
            counts[usize::try_from(token).unwrap()] += 1;
        }
        for (count, expected) in counts.into_iter().zip([400.0, 2400.0, 1200.0]) {
            // Five standard deviations.
            assert!(
                (f64::from(count) - expected).abs() < 5.0 * f64::sqrt(expected),
                "{counts:?}"
            );
        }
    }

    #[test]
    fn a_row_draws_the_same_in_any_batch() {
        let logits = Tensor::zeros([3, 50], tch::kind::FLOAT_CPU);
        let options = SampleOptions {
            temperature: 1.0,
            ..Default::default()
        };
        let rows = [&[1_i64, 2][..], &[3], &[4, 5]];
        let together: Vec<i64> =
            Vec::try_from(options.next_tokens(&logits, &rows.map(|ids| history(ids, 4, 9)), &[]))
                .unwrap();
        for (row, ids) in rows.into_iter().enumerate() {
            let alone = options.next_tokens(&logits.narrow(0, 0, 1), &[history(ids, 4, 9)], &[]);
            assert_eq!(alone.int64_value(&[0]), together[row]);
        }
        assert!(together[0] != together[1] || together[1] != together[2]);
    }

    #[test]
    fn refused_tokens_are_never_drawn() {
        let logits = Tensor::zeros([1, 4], tch::kind::FLOAT_CPU);
        let options = SampleOptions {
            temperature: 1.0,
            min_new_tokens: 1,
            ..Default::default()
        };
        for seed in 0..200 {
            let row = history(&[1], 0, seed);
            let token = options.next_tokens(&logits, &[row], &[0, 1, 3]);
            assert_eq!(token.int64_value(&[0]), 2);
        }
    }
}
