//! Continuous batching on a GPU: as many rows as there are slots are continued together, and a slot whose row is done
//! takes the next prompt. Steps are replayed from a recording, several between two looks of the host.

use std::collections::VecDeque;
use std::ops::ControlFlow;

use super::graph::OwnStream;
use super::sampler::Choices;
use super::slot_decoder::{PREFILL_TOKENS, Room, SlotDecoder, takes};
use super::slots::{Admission, FAILED, RUNNING, STOPPED};
use crate::lm::attention::Varlen;
use crate::lm::generate::{Finish, Generator, OnDone, Row};
use crate::lm::{LmError, memory};

/// Steps between two looks of the host. A row that is done stays idle for as many at most.
const STEPS: usize = 8;
/// The share of the free memory that keys and values may take.
const CACHE_SHARE: f64 = 0.8;

/// Rows that wait, those under way, and where all of it lies.
struct Continuous<'a> {
    generator: &'a Generator<'a>,
    slots: SlotDecoder,
    /// The row of each slot.
    rows: Vec<Option<Row>>,
    stream: OwnStream,
}

/// Whether the model can be continued here.
pub fn continues(generator: &Generator<'_>) -> bool {
    takes(generator.decoder)
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
    let mut slots = generator.options.batch_size.clamp(1, queue.len().max(1));
    loop {
        match Continuous::new(generator, slots, &queue) {
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
        slots: usize,
        queue: &VecDeque<Row>,
    ) -> Result<Self, LmError> {
        let (decoder, config) = (generator.decoder, generator.config);
        let device = decoder.placement().device;
        let stream = OwnStream::enter(device)?;
        let longest = queue
            .iter()
            .map(|row| row.prompt_length + row.max_new_tokens);
        let draws = queue.iter().map(|row| row.max_new_tokens).max();
        let room = Room {
            slots,
            capacity: longest.max().unwrap_or(1).next_multiple_of(8) as i64,
            choices: Choices::of(&generator.options.sample),
            draws: draws.unwrap_or(1) as i64,
        };
        let bytes = SlotDecoder::cache_bytes(config, &room);
        let free = memory::available(device).unwrap_or(u64::MAX);
        if slots > 1 && bytes as f64 > free as f64 * CACHE_SHARE {
            let message = "out of memory: the keys and values of all rows do not fit";
            return Err(LmError::Torch(message.to_owned()));
        }
        Ok(Self {
            slots: SlotDecoder::new(decoder, config, generator.stop_ids, room)?,
            rows: (0..slots).map(|_| None).collect(),
            generator,
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
        let sample = &self.generator.options.sample;
        let drawn = self.slots.room().choices.drawn;
        let filled = slots
            .iter()
            .filter_map(|&slot| Some((slot, self.rows[slot].as_ref()?)));
        let admissions: Vec<Admission<'_>> = filled
            .map(|(slot, row)| Admission {
                slot,
                prompt: &row.ids,
                limit: row.max_new_tokens,
                sample,
                uniforms: match drawn {
                    true => row.draws(),
                    false => Vec::new(),
                },
            })
            .collect();
        let lengths: Vec<i64> = admissions
            .iter()
            .map(|row| row.prompt.len() as i64)
            .collect();
        let decoder = self.generator.decoder;
        let attention = Varlen::new(&lengths, &lengths, decoder.placement())?;
        self.slots.prefill(decoder, &admissions, &attention)
    }

    /// Some steps of all rows under way.
    fn steps(&mut self) -> Result<(), LmError> {
        let busy: Vec<bool> = self.rows.iter().map(Option::is_some).collect();
        let most = self.rows.iter().flatten().map(|row| row.max_new_tokens);
        let count = STEPS.min(most.max().unwrap_or(1));
        let decoder = self.generator.decoder;
        self.slots.steps(&self.stream, decoder, &busy, count)
    }

    /// Looks at the slots and hands finished rows over.
    fn collect(&mut self, on_done: &mut OnDone<'_>) -> Result<ControlFlow<()>, LmError> {
        let progress = self.slots.slots.progress()?;
        let done: Vec<usize> = (0..self.rows.len())
            .filter(|&slot| self.rows[slot].is_some() && progress[slot].state != RUNNING)
            .collect();
        if done.is_empty() {
            return Ok(ControlFlow::Continue(()));
        }
        let histories = self.slots.slots.histories(&done)?;
        for (slot, history) in done.into_iter().zip(histories) {
            let Some(row) = self.rows[slot].take() else {
                continue;
            };
            let length = progress[slot].length;
            let result = match progress[slot].state {
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
