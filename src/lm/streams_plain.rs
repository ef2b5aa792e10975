//! Streams with plain operations, on any device: one step gives each its next token.

use tch::{Kind, Tensor};

use super::generate::prefill;
use super::kv::KvCache;
use super::sample::{History, row_seed};
use super::{Advance, Decoder, Finish, LmError, ModelConfig, NewStream, SampleOptions, guard};

/// Streams of one model.
pub(super) struct PlainStreams {
    config: ModelConfig,
    stop_ids: Vec<i64>,
    /// Places of the cache; one that is empty serves the next stream.
    rows: Vec<Option<Stream>>,
    /// None while there is no stream.
    cache: Option<KvCache>,
}

struct Stream {
    id: u64,
    /// Prompt and new tokens.
    ids: Vec<i64>,
    prompt_length: usize,
    max_new_tokens: usize,
    sample: SampleOptions,
    seed: [u8; 32],
}

impl PlainStreams {
    pub(super) fn new(config: &ModelConfig, stop_ids: &[i64]) -> Self {
        Self {
            config: config.clone(),
            stop_ids: stop_ids.to_vec(),
            rows: Vec::new(),
            cache: None,
        }
    }

    /// Streams under way.
    pub(super) fn len(&self) -> usize {
        self.rows.iter().flatten().count()
    }

    /// As [`super::Streams::join`].
    ///
    /// # Errors
    /// [`LmError::Torch`], out of memory included; the new streams are not there then.
    pub(super) fn join(
        &mut self,
        decoder: &Decoder,
        new: Vec<NewStream>,
    ) -> Result<Vec<Advance>, LmError> {
        let free = (0..self.rows.len()).filter(|&row| self.rows[row].is_none());
        let places: Vec<usize> = free.chain(self.rows.len()..).take(new.len()).collect();
        let rows = self
            .rows
            .len()
            .max(places.iter().max().map_or(0, |place| place + 1));
        let longest = new
            .iter()
            .map(|stream| stream.prompt.len() as i64 + 1)
            .max()
            .unwrap_or(1);
        let placement = decoder.placement();
        let result = guard(|| {
            tch::no_grad(|| {
                let cache = self
                    .cache
                    .get_or_insert_with(|| KvCache::new(&self.config, placement, rows, longest));
                cache.resize(rows, longest.max(cache.capacity()))?;
                let prompts: Vec<(usize, &[i64])> = places
                    .iter()
                    .zip(&new)
                    .map(|(&place, stream)| (place, &stream.prompt[..]))
                    .collect();
                prefill(decoder, &prompts, cache)
            })
        });
        let hidden = match result {
            Ok(hidden) => hidden,
            Err(error) => {
                self.tidy();
                return Err(error);
            }
        };
        self.rows.resize_with(rows, || None);
        for (&place, stream) in places.iter().zip(new) {
            self.rows[place] = Some(Stream {
                seed: row_seed(stream.sample.seed, &stream.prompt),
                id: stream.id,
                prompt_length: stream.prompt.len(),
                ids: stream.prompt,
                max_new_tokens: stream.max_new_tokens,
                sample: stream.sample,
            });
        }
        let advances = self.choose(decoder, &hidden, &places)?;
        self.tidy();
        Ok(advances)
    }

    /// Gives every stream its next token.
    ///
    /// # Errors
    /// [`LmError::Torch`], out of memory included: no stream can be continued then.
    pub(super) fn step(&mut self, decoder: &Decoder) -> Result<Vec<Advance>, LmError> {
        let Some(cache) = &mut self.cache else {
            return Ok(Vec::new());
        };
        let growing: Vec<bool> = self.rows.iter().map(Option::is_some).collect();
        // A place without a stream is computed with the others and not looked at.
        let last: Vec<i64> = self
            .rows
            .iter()
            .map(|row| {
                row.as_ref()
                    .and_then(|row| row.ids.last().copied())
                    .unwrap_or(0)
            })
            .collect();
        let device = decoder.placement().device;
        let hidden = guard(|| {
            tch::no_grad(|| {
                let needed = cache.longest() + 1;
                if needed > cache.capacity() {
                    // Doubling keeps the copying small beside the computing.
                    let capacity = (2 * cache.capacity()).min(self.config.context).max(needed);
                    cache.resize(growing.len(), capacity)?;
                }
                let step = cache.step(&growing);
                let ids = Tensor::from_slice(&last).f_to_device(device)?;
                let all = Tensor::f_arange(last.len() as i64, (Kind::Int64, device))?;
                decoder.infer(&ids, &step.positions, &all, |layer, q, k, v| {
                    Ok(cache.attend(layer, &step, q, k, v))
                })
            })
        })?;
        let places: Vec<usize> = (0..self.rows.len()).collect();
        let advances = self.choose(decoder, &hidden, &places)?;
        self.tidy();
        Ok(advances)
    }

    /// Ends a stream before its time.
    pub(super) fn leave(&mut self, id: u64) {
        for (place, row) in self.rows.iter_mut().enumerate() {
            if row.as_ref().is_some_and(|stream| stream.id == id) {
                *row = None;
                if let Some(cache) = &mut self.cache {
                    cache.clear(place);
                }
            }
        }
        self.tidy();
    }

    /// The next tokens of the streams at `places`, whose hidden states are the rows of `hidden`.
    fn choose(
        &mut self,
        decoder: &Decoder,
        hidden: &Tensor,
        places: &[usize],
    ) -> Result<Vec<Advance>, LmError> {
        let mut waiting: Vec<(i64, usize)> = (0..)
            .zip(places.iter().copied())
            .filter(|(_, place)| self.rows[*place].is_some())
            .collect();
        let logits = guard(|| tch::no_grad(|| Ok(decoder.logits(hidden))))?;
        let mut advances = Vec::with_capacity(waiting.len());
        // Those that choose in the same way choose together.
        while let Some(sample) = waiting
            .first()
            .and_then(|(_, place)| self.rows[*place].as_ref())
            .map(|stream| alike(&stream.sample))
        {
            let (group, rest): (Vec<_>, Vec<_>) = waiting.into_iter().partition(|(_, place)| {
                self.rows[*place]
                    .as_ref()
                    .is_some_and(|stream| alike(&stream.sample) == sample)
            });
            waiting = rest;
            let index: Vec<i64> = group.iter().map(|(row, _)| *row).collect();
            let histories: Vec<History<'_>> = group
                .iter()
                .filter_map(|(_, place)| self.rows[*place].as_ref())
                .map(Stream::history)
                .collect();
            let tokens = guard(|| {
                tch::no_grad(|| {
                    let own = logits.f_index_select(
                        0,
                        &Tensor::from_slice(&index).f_to_device(logits.device())?,
                    )?;
                    Ok(Vec::<i64>::try_from(sample.next_tokens(
                        &own,
                        &histories,
                        &self.stop_ids,
                    ))?)
                })
            })?;
            for ((_, place), token) in group.into_iter().zip(tokens) {
                advances.extend(self.advance(place, token));
            }
        }
        Ok(advances)
    }

    fn advance(&mut self, place: usize, token: i64) -> Option<Advance> {
        let stream = self.rows[place].as_mut()?;
        let id = stream.id;
        let stopped = self.stop_ids.contains(&token);
        if !stopped {
            stream.ids.push(token);
        }
        let full = stream.ids.len() - stream.prompt_length >= stream.max_new_tokens;
        let finish = match (stopped, full) {
            (true, _) => Some(Finish::Stop),
            (false, true) => Some(Finish::Length),
            (false, false) => None,
        };
        if finish.is_some() {
            self.rows[place] = None;
            if let Some(cache) = &mut self.cache {
                cache.clear(place);
            }
        }
        Some(Advance {
            id,
            token: (!stopped).then_some(token),
            finish,
            failed: false,
        })
    }

    /// Gives memory back: all of it without streams, and places when half of them are empty, for copying the cache each
    /// time would cost more.
    fn tidy(&mut self) {
        let busy: Vec<usize> = (0..self.rows.len())
            .filter(|&row| self.rows[row].is_some())
            .collect();
        if busy.is_empty() {
            self.cache = None;
            self.rows.clear();
        } else if busy.len() * 2 <= self.rows.len()
            && let Some(cache) = &mut self.cache
        {
            cache.compact(&busy);
            self.rows.retain(Option::is_some);
        }
    }
}

impl Stream {
    fn history(&self) -> History<'_> {
        History {
            ids: &self.ids,
            new_tokens: self.ids.len() - self.prompt_length,
            seed: self.seed,
        }
    }
}

/// The options without the seed, which each stream has in its history.
fn alike(sample: &SampleOptions) -> SampleOptions {
    SampleOptions {
        seed: 0,
        ..sample.clone()
    }
}
