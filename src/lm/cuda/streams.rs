//! Streams of one model on a GPU: prompts that come and go at any time, continued together by recorded steps.

use super::graph::OwnStream;
use super::sampler::Choices;
use super::slot_decoder::{PREFILL_TOKENS, Room, SlotDecoder};
use super::slots::{Admission, FAILED, RUNNING, STOPPED};
use crate::lm::attention::Varlen;
use crate::lm::sample::{row_seed, uniform};
use crate::lm::{Advance, Decoder, Finish, LmError, ModelConfig, NewStream, guard};

/// Steps between two looks of the host: a reader gets as many tokens at once, and a new prompt waits as long at most.
const STEPS: usize = 4;
/// Tokens that a slot has room for at first; it doubles where a stream needs more.
const FIRST_CAPACITY: i64 = 256;

pub struct SlotStreams {
    config: ModelConfig,
    stop_ids: Vec<i64>,
    /// None before the first prompt.
    decoder: Option<SlotDecoder>,
    /// The stream of each slot.
    rows: Vec<Option<Row>>,
    /// Steps are launched whose tokens have not been read.
    unread: bool,
    /// Read and not given out.
    ready: Vec<Advance>,
}

struct Row {
    id: u64,
    /// New tokens read.
    read: usize,
}

impl SlotStreams {
    /// At most `slots` streams at a time.
    pub fn new(config: &ModelConfig, stop_ids: &[i64], slots: usize) -> Self {
        Self {
            config: config.clone(),
            stop_ids: stop_ids.to_vec(),
            decoder: None,
            rows: std::iter::repeat_with(|| None).take(slots).collect(),
            unread: false,
            ready: Vec::new(),
        }
    }

    pub fn len(&self) -> usize {
        self.rows.iter().flatten().count()
    }

    /// As [`crate::lm::Streams::join`].
    ///
    /// # Errors
    /// [`LmError::Kernel`] and [`LmError::Torch`], out of memory included; the new streams are not there then.
    pub fn join(
        &mut self,
        decoder: &Decoder,
        new: Vec<NewStream>,
    ) -> Result<Vec<Advance>, LmError> {
        let free = (0..self.rows.len()).filter(|&slot| self.rows[slot].is_none());
        let places: Vec<usize> = free.take(new.len()).collect();
        assert_eq!(places.len(), new.len(), "as many streams as slots at most");
        let result = guard(|| tch::no_grad(|| self.admit(decoder, &new, &places)));
        if let Err(error) = result {
            places.into_iter().for_each(|place| self.rows[place] = None);
            return Err(error);
        }
        Ok(std::mem::take(&mut self.ready))
    }

    /// As [`crate::lm::Streams::step`], but the tokens are those of the steps that the last call launched: the device
    /// computes the next ones while the caller works with them.
    ///
    /// # Errors
    /// [`LmError::Kernel`] and [`LmError::Torch`]: no stream can be continued then.
    pub fn step(&mut self, decoder: &Decoder) -> Result<Vec<Advance>, LmError> {
        guard(|| {
            tch::no_grad(|| {
                let stream = OwnStream::enter(decoder.placement().device)?;
                self.read()?;
                let busy: Vec<bool> = self.rows.iter().map(Option::is_some).collect();
                if busy.contains(&true)
                    && let Some(slots) = &mut self.decoder
                {
                    slots.steps(&stream, decoder, &busy, STEPS)?;
                    self.unread = true;
                }
                Ok(())
            })
        })?;
        Ok(std::mem::take(&mut self.ready))
    }

    /// Ends a stream before its time.
    ///
    /// # Errors
    /// What libtorch refuses.
    pub fn leave(&mut self, decoder: &Decoder, id: u64) -> Result<(), LmError> {
        let of = |row: &Option<Row>| row.as_ref().is_some_and(|row| row.id == id);
        let Some(slot) = self.rows.iter().position(of) else {
            return Ok(());
        };
        self.rows[slot] = None;
        let Some(slots) = &self.decoder else {
            return Ok(());
        };
        let _stream = OwnStream::enter(decoder.placement().device)?;
        slots.slots.stop(slot)
    }

    fn admit(
        &mut self,
        decoder: &Decoder,
        new: &[NewStream],
        places: &[usize],
    ) -> Result<(), LmError> {
        let _stream = OwnStream::enter(decoder.placement().device)?;
        let longest = new
            .iter()
            .map(|stream| stream.prompt.len() + stream.max_new_tokens.max(1));
        self.make_room(decoder, longest.max().unwrap_or(0) as i64)?;
        self.read()?;
        let Some(slots) = &self.decoder else {
            unreachable!("room has been made")
        };
        let admissions: Vec<Admission<'_>> = places
            .iter()
            .zip(new)
            .map(|(&slot, stream)| {
                let seed = row_seed(stream.sample.seed, &stream.prompt);
                let limit = stream.max_new_tokens.max(1);
                Admission {
                    slot,
                    prompt: &stream.prompt,
                    limit,
                    sample: &stream.sample,
                    uniforms: match stream.sample.temperature > 0.0 {
                        true => (0..limit).map(|made| uniform(&seed, made)).collect(),
                        false => Vec::new(),
                    },
                }
            })
            .collect();
        let mut rest = &admissions[..];
        while !rest.is_empty() {
            let mut tokens = 0;
            let fitting = rest.iter().take_while(|row| {
                let fits = tokens == 0 || tokens + row.prompt.len() <= PREFILL_TOKENS;
                tokens += row.prompt.len();
                fits
            });
            let (part, behind) = rest.split_at(fitting.count());
            rest = behind;
            let lengths: Vec<i64> = part.iter().map(|row| row.prompt.len() as i64).collect();
            let attention = Varlen::once(&lengths, decoder.placement())?;
            slots.prefill(decoder, part, &attention)?;
        }
        for (&place, stream) in places.iter().zip(new) {
            self.rows[place] = Some(Row {
                id: stream.id,
                read: 0,
            });
        }
        self.unread = true;
        self.read()
    }

    /// Room for streams of `tokens` tokens; those under way stay.
    fn make_room(&mut self, decoder: &Decoder, tokens: i64) -> Result<(), LmError> {
        let held = self.decoder.as_ref().map(|slots| slots.room().capacity);
        if held.is_some_and(|held| tokens <= held) {
            return Ok(());
        }
        let doubled = FIRST_CAPACITY.max(tokens.unsigned_abs().next_power_of_two() as i64);
        let capacity = doubled.min(self.config.context).max(tokens);
        let room = Room {
            slots: self.rows.len(),
            capacity: (capacity as u64).next_multiple_of(8) as i64,
            choices: Choices::ALL,
            draws: capacity,
        };
        let wide = SlotDecoder::new(decoder, &self.config, &self.stop_ids, room)?;
        if let Some(narrow) = &self.decoder {
            wide.take_over(narrow)?;
        }
        self.decoder = Some(wide);
        Ok(())
    }

    /// Waits for what is launched and takes its tokens over.
    fn read(&mut self) -> Result<(), LmError> {
        let Some(slots) = self.decoder.as_ref().filter(|_| self.unread) else {
            return Ok(());
        };
        let progress = slots.slots.progress()?;
        self.unread = false;
        for (slot, now) in self.rows.iter_mut().zip(&progress) {
            let Some(row) = slot else { continue };
            let id = row.id;
            let finish = match now.state {
                RUNNING => None,
                STOPPED => Some(Finish::Stop),
                _ => Some(Finish::Length),
            };
            let tokens = (row.read..now.made).map(|number| Some(now.token(number)));
            let end = (now.state == STOPPED || now.state == FAILED).then_some(None);
            let first = self.ready.len();
            self.ready.extend(tokens.chain(end).map(|token| Advance {
                id,
                token,
                finish: None,
                failed: now.state == FAILED && token.is_none(),
            }));
            row.read = now.made;
            if now.state != RUNNING {
                *slot = None;
                if let Some(last) = self.ready[first..].last_mut()
                    && !last.failed
                {
                    last.finish = finish;
                }
            }
        }
        Ok(())
    }
}
