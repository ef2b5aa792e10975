//! Completions for many prompts: batches of similar length, one forward pass over the packed prompts, then one token
//! per row and step.

use std::cmp::Reverse;
use std::ops::ControlFlow;

use tch::Tensor;

use super::kv::KvCache;
use super::sample::{History, SampleOptions, row_seed};
use super::{Batch, Decoder, LanguageModel, LmError, ModelConfig, attention, guard};

#[derive(Clone, Debug)]
pub struct GenerateOptions {
    pub max_new_tokens: usize,
    /// Rows computed together.
    pub batch_size: usize,
    pub sample: SampleOptions,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self {
            max_new_tokens: 256,
            batch_size: 16,
            sample: SampleOptions::default(),
        }
    }
}

/// What the model wrote after a prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The new tokens, without the stop token.
    pub ids: Vec<i64>,
    /// `ids` as text without special tokens.
    pub text: String,
    pub finish: Finish,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// A stop token was chosen.
    Stop,
    /// `max_new_tokens` or the end of the context was reached.
    Length,
}

/// Writes a completion for every prompt (token ids). `on_done` gets each one with its index in `prompts`, in the order
/// they are finished; a row that cannot be completed gets its own error and does not stop the others. `on_done` ends
/// the work early with `Break`.
///
/// # Errors
/// [`LmError::Torch`] where a whole batch failed.
pub fn generate(
    model: &LanguageModel,
    prompts: &[Vec<i64>],
    options: &GenerateOptions,
    on_done: &mut dyn FnMut(usize, Result<Completion, LmError>) -> ControlFlow<()>,
) -> Result<(), LmError> {
    let generator = Generator {
        decoder: &model.decoder,
        config: &model.config,
        stop_ids: model.stop_ids(),
        options,
    };
    generator.run(prompts, &mut |index, result| {
        let completion = result.and_then(|(ids, finish)| {
            Ok(Completion {
                text: model.tokenizer.decode(&ids)?,
                ids,
                finish,
            })
        });
        on_done(index, completion)
    })
}

/// Which prompts are computed together: longest first, `batch_size` at a time. A function of the lengths alone.
pub fn plan_batches(lengths: &[usize], batch_size: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&index| Reverse(lengths[index]));
    order
        .chunks(batch_size.max(1))
        .map(<[usize]>::to_vec)
        .collect()
}

/// [`generate`] without text.
pub(super) struct Generator<'a> {
    pub(super) decoder: &'a Decoder,
    pub(super) config: &'a ModelConfig,
    pub(super) stop_ids: &'a [i64],
    pub(super) options: &'a GenerateOptions,
}

type OnDone<'a> = dyn FnMut(usize, Result<(Vec<i64>, Finish), LmError>) -> ControlFlow<()> + 'a;

/// A prompt that is being continued.
struct Row {
    index: usize,
    /// Prompt and new tokens.
    ids: Vec<i64>,
    prompt_length: usize,
    max_new_tokens: usize,
    seed: [u8; 32],
    finished: bool,
}

impl Generator<'_> {
    pub(super) fn run(
        &self,
        prompts: &[Vec<i64>],
        on_done: &mut OnDone<'_>,
    ) -> Result<(), LmError> {
        let mut usable = Vec::new();
        for (index, prompt) in prompts.iter().enumerate() {
            match self.refusal(prompt) {
                None => usable.push(index),
                Some(error) => {
                    if on_done(index, Err(error)).is_break() {
                        return Ok(());
                    }
                }
            }
        }
        let lengths: Vec<usize> = usable.iter().map(|&index| prompts[index].len()).collect();
        for batch in plan_batches(&lengths, self.options.batch_size) {
            let rows = batch
                .into_iter()
                .map(|at| self.row(usable[at], &prompts[usable[at]]))
                .collect();
            let flow = guard(|| tch::no_grad(|| Ok(self.run_batch(rows, on_done))))?;
            if flow.is_break() {
                break;
            }
        }
        Ok(())
    }

    /// Why a prompt cannot be continued by even one token.
    fn refusal(&self, prompt: &[i64]) -> Option<LmError> {
        let limit = usize::try_from(self.config.context).unwrap_or(usize::MAX);
        if prompt.is_empty() {
            return Some(LmError::Prompt("it is empty".into()));
        }
        if let Some(id) = prompt
            .iter()
            .find(|id| !(0..self.config.vocab).contains(*id))
        {
            return Some(LmError::Prompt(format!(
                "token {id} is not in the vocabulary"
            )));
        }
        let tokens = prompt.len() + 1;
        (tokens > limit).then_some(LmError::Context { tokens, limit })
    }

    fn row(&self, index: usize, prompt: &[i64]) -> Row {
        let room = usize::try_from(self.config.context).unwrap_or(usize::MAX) - prompt.len();
        Row {
            index,
            ids: prompt.to_vec(),
            prompt_length: prompt.len(),
            max_new_tokens: self.options.max_new_tokens.min(room),
            seed: row_seed(self.options.sample.seed, prompt),
            finished: false,
        }
    }

    fn run_batch(&self, mut rows: Vec<Row>, on_done: &mut OnDone<'_>) -> ControlFlow<()> {
        // Rows that are done grow on until they leave, so each gets room for all steps of the batch.
        let longest = rows.iter().map(|row| row.prompt_length).max().unwrap_or(0);
        let steps = rows.iter().map(|row| row.max_new_tokens).max().unwrap_or(0);
        let capacity = (longest + steps) as i64;
        let placement = self.decoder.placement();
        let mut cache = KvCache::new(self.config, placement, rows.len(), capacity);
        let mut hidden = self.prefill(&rows, &mut cache);
        loop {
            self.choose_tokens(&hidden, &mut rows, on_done)?;
            let running = rows.iter().filter(|row| !row.finished).count();
            if running == 0 {
                return ControlFlow::Continue(());
            }
            // Rows that are done leave when they are half of the batch: copying the cache each time would cost more.
            if running * 2 <= rows.len() {
                let kept: Vec<usize> = (0..rows.len()).filter(|&row| !rows[row].finished).collect();
                cache.compact(&kept);
                rows.retain(|row| !row.finished);
            }
            let last: Vec<i64> = rows
                .iter()
                .filter_map(|row| row.ids.last().copied())
                .collect();
            let step = cache.step();
            let ids = Tensor::from_slice(&last).to_device(placement.device);
            hidden = self
                .decoder
                .forward_with(&ids, &step.positions, |layer, q, k, v| {
                    cache.attend(layer, &step, q, k, v)
                });
        }
    }

    /// Fills the cache from the prompts. Returns the hidden state of each prompt's last token, [B, hidden].
    fn prefill(&self, rows: &[Row], cache: &mut KvCache) -> Tensor {
        const TOKENS_AT_ONCE: usize = 8192;
        let mut last_states = Vec::new();
        let mut first = 0;
        while first < rows.len() {
            let mut tokens = 0;
            let part: Vec<&[i64]> = rows[first..]
                .iter()
                .map(|row| &row.ids[..])
                .take_while(|ids| {
                    let fits = tokens == 0 || tokens + ids.len() <= TOKENS_AT_ONCE;
                    tokens += ids.len();
                    fits
                })
                .collect();
            let batch = Batch::pack(&part, self.decoder.placement().device);
            let hidden =
                self.decoder
                    .forward_with(&batch.ids, &batch.positions, |layer, q, k, v| {
                        for (offset, bounds) in batch.cu_seqlens.windows(2).enumerate() {
                            let own = |x: &Tensor| x.narrow(0, bounds[0], bounds[1] - bounds[0]);
                            cache.fill(layer, first + offset, &own(k), &own(v));
                        }
                        attention::causal_varlen(q, k, v, &batch.cu_seqlens)
                    });
            let ends: Vec<i64> = batch.cu_seqlens[1..].iter().map(|end| end - 1).collect();
            let ends = Tensor::from_slice(&ends).to_device(hidden.device());
            last_states.push(hidden.index_select(0, &ends));
            first += part.len();
        }
        Tensor::cat(&last_states, 0)
    }

    /// Adds the next token to every running row, or finishes it.
    fn choose_tokens(
        &self,
        hidden: &Tensor,
        rows: &mut [Row],
        on_done: &mut OnDone<'_>,
    ) -> ControlFlow<()> {
        let histories: Vec<History<'_>> = rows.iter().map(Row::history).collect();
        let logits = self.decoder.logits(hidden);
        let tokens = self
            .options
            .sample
            .next_tokens(&logits, &histories, self.stop_ids);
        for (position, row) in (0..).zip(rows) {
            if row.finished {
                continue;
            }
            let token = tokens.int64_value(&[position]);
            let finish = if row.new_tokens() == row.max_new_tokens {
                Some(Finish::Length)
            } else if self.stop_ids.contains(&token) {
                Some(Finish::Stop)
            } else {
                row.ids.push(token);
                (row.new_tokens() == row.max_new_tokens).then_some(Finish::Length)
            };
            if let Some(finish) = finish {
                row.finished = true;
                on_done(
                    row.index,
                    Ok((row.ids[row.prompt_length..].to_vec(), finish)),
                )?;
            }
        }
        ControlFlow::Continue(())
    }
}

impl Row {
    fn new_tokens(&self) -> usize {
        self.ids.len() - self.prompt_length
    }

    fn history(&self) -> History<'_> {
        History {
            ids: &self.ids,
            new_tokens: self.new_tokens(),
            seed: self.seed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_longest_first_and_complete() {
        assert_eq!(
            plan_batches(&[3, 9, 1, 9, 5], 2),
            [vec![1, 3], vec![4, 0], vec![2]]
        );
        assert!(plan_batches(&[], 4).is_empty());
    }
}
