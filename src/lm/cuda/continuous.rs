//! Continuous batching on a GPU: as many rows as there are slots are continued together, and a slot whose row is done
//! takes the next prompt. Steps are replayed from a recording, several between two looks of the host.

use std::collections::{HashMap, VecDeque};
use std::ops::ControlFlow;

use tch::{Kind, Tensor};

use super::decode_step::{DecodeStep, decodes};
use super::forward::FusedForward;
use super::graph::{Graph, OwnStream};
use super::rotate::CacheRows;
use super::sampler::Sampler;
use super::slots::{Admission, FAILED, RUNNING, STOPPED, Slots};
use crate::lm::attention::Varlen;
use crate::lm::generate::{Finish, Generator, OnDone, Row};
use crate::lm::{Batch, LmError, memory};

/// Steps between two looks of the host. A row that is done stays idle for as many at most.
const STEPS: usize = 8;
/// Prompt tokens computed together.
const PREFILL_TOKENS: usize = 16_384;
/// The share of the free memory that keys and values may take.
const CACHE_SHARE: f64 = 0.8;

/// Rows that wait, those under way, and where all of it lies.
struct Continuous<'a> {
    generator: &'a Generator<'a>,
    fused: &'a FusedForward,
    sampler: Sampler,
    slots: Slots,
    step: DecodeStep,
    /// Per layer keys and values, each [slots, kv_heads, capacity, D].
    layers: Vec<(Tensor, Tensor)>,
    /// The row of each slot.
    rows: Vec<Option<Row>>,
    /// By number of rows: recorded after it has run once, when all libraries are set up for its shapes.
    graphs: HashMap<i64, Option<Graph>>,
    /// The slots that the rows of a step have now.
    order: Vec<i32>,
    stream: OwnStream,
}

/// Whether the model can be continued here.
pub fn continues(generator: &Generator<'_>) -> bool {
    let decoder = generator.decoder;
    decoder.fused().is_some_and(|fused| decodes(decoder, fused))
}

/// Continues `queue`, which is longest first.
///
/// # Errors
/// [`LmError::Torch`] and [`LmError::Kernel`].
pub fn run(
    generator: &Generator<'_>,
    mut queue: VecDeque<Row>,
    on_done: &mut OnDone<'_>,
) -> Result<(), LmError> {
    let fused = generator
        .decoder
        .fused()
        .expect("asked by `continues` before");
    let mut slots = generator.options.batch_size.clamp(1, queue.len().max(1));
    loop {
        match Continuous::new(generator, fused, slots, &queue) {
            Ok(mut continuous) => return continuous.run(&mut queue, on_done),
            // Fewer rows at once need less memory for keys and values.
            Err(error) if error.is_out_of_memory() && slots > 1 => slots = slots.div_ceil(2),
            Err(error) => return Err(error),
        }
    }
}

impl<'a> Continuous<'a> {
    fn new(
        generator: &'a Generator<'a>,
        fused: &'a FusedForward,
        slots: usize,
        queue: &VecDeque<Row>,
    ) -> Result<Self, LmError> {
        let (decoder, config) = (generator.decoder, generator.config);
        let placement = decoder.placement();
        let device = placement.device;
        let stream = OwnStream::enter(device)?;
        let longest = queue
            .iter()
            .map(|row| row.prompt_length + row.max_new_tokens);
        let capacity = longest.max().unwrap_or(1).next_multiple_of(8) as i64;
        let count = slots as i64;
        let bytes = 2 * config.layers * count * config.kv_heads * capacity * config.head_dim * 2;
        let free = memory::available(device).unwrap_or(u64::MAX);
        if slots > 1 && bytes as f64 > free as f64 * CACHE_SHARE {
            let message = "out of memory: the keys and values of all rows do not fit";
            return Err(LmError::Torch(message.to_owned()));
        }
        let cache = || {
            let shape = [count, config.kv_heads, capacity, config.head_dim];
            Tensor::f_zeros(shape, (placement.kind, device))
        };
        let layers = (0..config.layers)
            .map(|_| Ok((cache()?, cache()?)))
            .collect::<Result<_, LmError>>()?;
        let sample = &generator.options.sample;
        let draws = (sample.temperature > 0.0).then(|| {
            let most = queue.iter().map(|row| row.max_new_tokens).max();
            most.unwrap_or(1) as i64
        });
        Ok(Self {
            sampler: Sampler::new(sample, generator.stop_ids, count, device)?,
            slots: Slots::new(
                count,
                capacity,
                config.vocab,
                device,
                Sampler::sets(sample),
                draws,
            )?,
            step: DecodeStep::new(decoder, fused, count, capacity)?,
            layers,
            rows: (0..slots).map(|_| None).collect(),
            graphs: HashMap::new(),
            order: Vec::new(),
            generator,
            fused,
            stream,
        })
    }

    fn run(&mut self, queue: &mut VecDeque<Row>, on_done: &mut OnDone<'_>) -> Result<(), LmError> {
        loop {
            while self.refill(queue)? {}
            if self.rows.iter().all(Option::is_none) {
                return Ok(());
            }
            self.steps()?;
            if self.collect(on_done)?.is_break() {
                return Ok(());
            }
        }
    }

    /// Gives free slots to waiting rows, as many as one forward pass takes; whether it was any.
    fn refill(&mut self, queue: &mut VecDeque<Row>) -> Result<bool, LmError> {
        let mut tokens = 0;
        let mut admitted = Vec::new();
        for (slot, row) in self.rows.iter_mut().enumerate() {
            if row.is_some() {
                continue;
            }
            let Some(next) = queue.front() else { break };
            tokens += next.prompt_length;
            if tokens > PREFILL_TOKENS && !admitted.is_empty() {
                break;
            }
            admitted.push(slot);
            *row = queue.pop_front();
        }
        if admitted.is_empty() {
            return Ok(false);
        }
        self.prefill(&admitted)?;
        Ok(true)
    }

    /// Computes the prompts of newly filled slots and takes their first tokens.
    fn prefill(&self, slots: &[usize]) -> Result<(), LmError> {
        let decoder = self.generator.decoder;
        let device = decoder.placement().device;
        let draws = self.slots.uniforms.is_some();
        let filled = || {
            slots
                .iter()
                .filter_map(|&slot| Some((slot, self.rows[slot].as_ref()?)))
        };
        let admissions: Vec<Admission<'_>> = filled()
            .map(|(slot, row)| Admission {
                slot,
                prompt: &row.ids,
                limit: row.max_new_tokens,
                uniforms: match draws {
                    true => row.draws(),
                    false => Vec::new(),
                },
            })
            .collect();
        self.slots.admit(&admissions)?;

        let prompts: Vec<&[i64]> = admissions.iter().map(|row| row.prompt).collect();
        let batch = Batch::pack(&prompts, device);
        let lengths: Vec<i64> = prompts.iter().map(|prompt| prompt.len() as i64).collect();
        let varlen = Varlen::new(&lengths, &lengths, decoder.placement())?;
        let of_rows: Vec<i32> = admissions
            .iter()
            .flat_map(|row| std::iter::repeat_n(row.slot as i32, row.prompt.len()))
            .collect();
        let of_rows = Tensor::from_slice(&of_rows).f_to_device(device)?;
        let positions = batch.positions.f_to_kind(Kind::Int)?;
        let cache = CacheRows {
            layers: &self.layers,
            slots: &of_rows,
            positions: &positions,
        };
        let ends: Vec<i64> = batch.cu_seqlens[1..].iter().map(|end| end - 1).collect();
        let hidden = self.fused.forward(
            decoder,
            &batch.ids,
            &batch.positions,
            &Tensor::from_slice(&ends).f_to_device(device)?,
            Some(&cache),
            &mut |_, q, k, v| varlen.attend(q, k, v),
        )?;
        let logits = decoder.logits(&hidden);
        let index: Vec<i32> = slots.iter().map(|&slot| slot as i32).collect();
        let index = Tensor::from_slice(&index).f_to_device(device)?;
        self.sampler.begin(&self.slots, &index, decoder.vocab())?;
        self.sampler.choose(&self.slots, &index, &logits)
    }

    /// Some steps of all rows under way.
    fn steps(&mut self) -> Result<(), LmError> {
        let rows = self.arrange()?;
        let most = self.rows.iter().flatten().map(|row| row.max_new_tokens);
        for _ in 0..STEPS.min(most.max().unwrap_or(1)) {
            match self.graphs.get(&rows) {
                Some(Some(graph)) => self.stream.replay(graph)?,
                Some(None) => {
                    let graph = self.stream.record(|| self.run_step(rows))?;
                    self.stream.replay(&graph)?;
                    self.graphs.insert(rows, Some(graph));
                }
                None => {
                    self.run_step(rows)?;
                    self.graphs.insert(rows, None);
                }
            }
        }
        Ok(())
    }

    fn run_step(&self, rows: i64) -> Result<(), LmError> {
        let decoder = self.generator.decoder;
        self.step.run(
            decoder,
            self.fused,
            &self.sampler,
            &self.slots,
            &self.layers,
            rows,
        )
    }

    /// Brings the slots under way to the front of a step and says how many rows it takes: all slots, or half of them, or
    /// a quarter and so on where that is enough.
    fn arrange(&mut self) -> Result<i64, LmError> {
        let (busy, idle): (Vec<usize>, Vec<usize>) =
            (0..self.rows.len()).partition(|&slot| self.rows[slot].is_some());
        let mut rows = self.rows.len();
        while rows > 1 && rows.div_ceil(2) >= busy.len() {
            rows = rows.div_ceil(2);
        }
        let order: Vec<i32> = busy
            .into_iter()
            .chain(idle)
            .take(rows)
            .map(|slot| slot as i32)
            .collect();
        if order != self.order {
            self.step.set_slots(&order)?;
            self.order = order;
        }
        Ok(rows as i64)
    }

    /// Looks at the slots and hands finished rows over.
    fn collect(&mut self, on_done: &mut OnDone<'_>) -> Result<ControlFlow<()>, LmError> {
        let progress = self.slots.progress()?;
        let done: Vec<usize> = (0..self.rows.len())
            .filter(|&slot| self.rows[slot].is_some() && progress[slot].2 != RUNNING)
            .collect();
        if done.is_empty() {
            return Ok(ControlFlow::Continue(()));
        }
        let histories = self.slots.histories(&done)?;
        for (slot, history) in done.into_iter().zip(histories) {
            let Some(row) = self.rows[slot].take() else {
                continue;
            };
            let (length, _, state) = progress[slot];
            let result = match state {
                FAILED => Err(LmError::NotANumber),
                STOPPED => Ok((history[row.prompt_length..length].to_vec(), Finish::Stop)),
                _ => Ok((history[row.prompt_length..length].to_vec(), Finish::Length)),
            };
            if on_done(row.index, result).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}
