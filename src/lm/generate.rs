//! Completions for many prompts: forward passes over packed prompts, then one token per row and step. A row that is done
//! makes room for the next prompt at once (continuous batching, as in Orca, Yu et al. 2022).

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::ops::ControlFlow;

use tch::Tensor;

use super::cpu_attention::Seen;
use super::kv::KvCache;
use super::sample::{History, SampleOptions, row_seed, uniform};
use super::{Batch, Decoder, LanguageModel, LmError, ModelConfig, attention, cuda, guard};

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

/// Writes a completion for every prompt (token ids), longest prompts first. On a GPU in bf16 the work is done by recorded
/// steps (see [`cuda`]); a text there can differ at a near tie from what the row gives alone, because matrix products of
/// another number of rows round otherwise. In f32 on the CPU it does not.
///
/// `on_done` gets each one with its index in `prompts`, in the order
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

/// [`generate`] without text.
pub(super) struct Generator<'a> {
    pub(super) decoder: &'a Decoder,
    pub(super) config: &'a ModelConfig,
    pub(super) stop_ids: &'a [i64],
    pub(super) options: &'a GenerateOptions,
}

pub(super) type OnDone<'a> =
    dyn FnMut(usize, Result<(Vec<i64>, Finish), LmError>) -> ControlFlow<()> + 'a;

/// A prompt that is being continued.
pub(super) struct Row {
    pub(super) index: usize,
    /// Prompt and new tokens.
    pub(super) ids: Vec<i64>,
    pub(super) prompt_length: usize,
    pub(super) max_new_tokens: usize,
    seed: [u8; 32],
    finished: bool,
}

impl Generator<'_> {
    pub(super) fn run(
        &self,
        prompts: &[Vec<i64>],
        on_done: &mut OnDone<'_>,
    ) -> Result<(), LmError> {
        let mut rows = Vec::new();
        for (index, prompt) in prompts.iter().enumerate() {
            let refused = match refusal(self.config, prompt) {
                Some(error) => Some(Err(error)),
                None if self.options.max_new_tokens == 0 => Some(Ok((Vec::new(), Finish::Length))),
                None => None,
            };
            match refused {
                None => rows.push(self.row(index, prompt)),
                Some(result) => {
                    if on_done(index, result).is_break() {
                        return Ok(());
                    }
                }
            }
        }
        if rows.is_empty() {
            return Ok(());
        }
        // Longest first: a prompt that does not fit into memory shows at once, and the last rows under way are short.
        rows.sort_by_key(|row| Reverse(row.prompt_length));
        let queue = VecDeque::from(rows);
        guard(|| {
            tch::no_grad(|| {
                if cuda::continues(self) {
                    return cuda::continue_rows(self, queue, on_done);
                }
                self.run_plain(queue, on_done).map(|_| ())
            })
        })
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

    /// With plain operations, on any device.
    fn run_plain(
        &self,
        mut queue: VecDeque<Row>,
        on_done: &mut OnDone<'_>,
    ) -> Result<ControlFlow<()>, LmError> {
        let placement = self.decoder.placement();
        let longest = queue
            .iter()
            .map(|row| row.prompt_length + row.max_new_tokens);
        let capacity = longest.max().unwrap_or(1) as i64;
        let slots = self.options.batch_size.clamp(1, queue.len().max(1));
        let mut cache = KvCache::new(self.config, placement, slots, capacity);
        let mut rows: Vec<Row> = queue.drain(..slots.min(queue.len())).collect();
        let mut admitted: Vec<usize> = (0..rows.len()).collect();
        loop {
            while !admitted.is_empty() {
                let prompts: Vec<(usize, &[i64])> = admitted
                    .iter()
                    .map(|&row| (row, &rows[row].ids[..]))
                    .collect();
                let hidden = prefill(self.decoder, &prompts, &mut cache)?;
                if self
                    .choose_tokens(&hidden, &mut rows, &admitted, on_done)
                    .is_break()
                {
                    return Ok(ControlFlow::Break(()));
                }
                admitted = refill(&mut rows, &mut queue);
            }
            let running: Vec<usize> = (0..rows.len()).filter(|&row| !rows[row].finished).collect();
            if running.is_empty() {
                return Ok(ControlFlow::Continue(()));
            }
            // Rows that are done leave when they are half of the batch: copying the cache each time would cost more.
            if running.len() * 2 <= rows.len() {
                cache.compact(&running);
                rows.retain(|row| !row.finished);
            }
            let last: Vec<i64> = rows
                .iter()
                .filter_map(|row| row.ids.last().copied())
                .collect();
            let growing: Vec<bool> = rows.iter().map(|row| !row.finished).collect();
            let step = cache.step(&growing);
            let ids = Tensor::from_slice(&last).to_device(placement.device);
            let hidden = self
                .decoder
                .forward_with(&ids, &step.positions, |layer, q, k, v| {
                    cache.attend(layer, &step, q, k, v)
                });
            let all: Vec<usize> = (0..rows.len()).collect();
            if self
                .choose_tokens(&hidden, &mut rows, &all, on_done)
                .is_break()
            {
                return Ok(ControlFlow::Break(()));
            }
            admitted = refill(&mut rows, &mut queue);
        }
    }

    /// Adds the next token to those of the rows `at` that are running, or finishes them. `hidden`: [at, hidden].
    fn choose_tokens(
        &self,
        hidden: &Tensor,
        rows: &mut [Row],
        at: &[usize],
        on_done: &mut OnDone<'_>,
    ) -> ControlFlow<()> {
        let histories: Vec<History<'_>> = at.iter().map(|&row| rows[row].history()).collect();
        let logits = self.decoder.logits(hidden);
        let tokens = self
            .options
            .sample
            .next_tokens(&logits, &histories, self.stop_ids);
        for (position, &row) in (0..).zip(at) {
            let row = &mut rows[row];
            if row.finished {
                continue;
            }
            let token = tokens.int64_value(&[position]);
            let finish = if self.stop_ids.contains(&token) {
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

/// Why a prompt cannot be continued by even one token.
pub(super) fn refusal(config: &ModelConfig, prompt: &[i64]) -> Option<LmError> {
    let limit = usize::try_from(config.context).unwrap_or(usize::MAX);
    if prompt.is_empty() {
        return Some(LmError::Prompt("it is empty".into()));
    }
    if let Some(id) = prompt.iter().find(|id| !(0..config.vocab).contains(*id)) {
        return Some(LmError::Prompt(format!(
            "token {id} is not in the vocabulary"
        )));
    }
    let tokens = prompt.len() + 1;
    (tokens > limit).then_some(LmError::Context { tokens, limit })
}

/// Fills the cache from prompts, each with its row there. Returns the hidden state of each one's last token,
/// [prompts, hidden].
pub(super) fn prefill(
    decoder: &Decoder,
    prompts: &[(usize, &[i64])],
    cache: &mut KvCache,
) -> Result<Tensor, LmError> {
    const TOKENS_AT_ONCE: usize = 8192;
    let mut last_states = Vec::new();
    let mut rest = prompts;
    while !rest.is_empty() {
        let mut tokens = 0;
        let fitting = rest.iter().take_while(|(_, prompt)| {
            let fits = tokens == 0 || tokens + prompt.len() <= TOKENS_AT_ONCE;
            tokens += prompt.len();
            fits
        });
        let (part, behind) = rest.split_at(fitting.count());
        rest = behind;
        let prompts: Vec<&[i64]> = part.iter().map(|(_, prompt)| *prompt).collect();
        let batch = Batch::pack(&prompts, decoder.placement().device);
        let ends: Vec<i64> = batch.cu_seqlens[1..].iter().map(|end| end - 1).collect();
        let ends = Tensor::from_slice(&ends).to_device(batch.ids.device());
        let attend = |layer, q: &Tensor, k: &Tensor, v: &Tensor| {
            let mut outputs = Vec::with_capacity(part.len());
            for ((row, _), bounds) in part.iter().zip(batch.cu_seqlens.windows(2)) {
                let own = |x: &Tensor| x.narrow(0, bounds[0], bounds[1] - bounds[0]);
                cache.fill(layer, *row, &own(k), &own(v));
                outputs.push(attention::infer(&own(q), &own(k), &own(v), Seen::Causal)?);
            }
            Ok(Tensor::f_cat(&outputs, 0)?)
        };
        last_states.push(decoder.infer(&batch.ids, &batch.positions, &ends, attend)?);
    }
    Ok(Tensor::cat(&last_states, 0))
}

/// Puts waiting rows in the place of finished ones; where.
fn refill(rows: &mut [Row], queue: &mut VecDeque<Row>) -> Vec<usize> {
    let mut admitted = Vec::new();
    for (at, row) in rows.iter_mut().enumerate() {
        if row.finished
            && let Some(next) = queue.pop_front()
        {
            *row = next;
            admitted.push(at);
        }
    }
    admitted
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

    /// The random stream of all its new tokens.
    pub(super) fn draws(&self) -> Vec<f64> {
        (0..self.max_new_tokens)
            .map(|step| uniform(&self.seed, step))
            .collect()
    }
}
