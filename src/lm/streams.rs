//! Completions token by token for prompts that come and go at any time, all continued together (continuous batching, as
//! in Orca, Yu et al. 2022). Each has its own way of choosing tokens.

use super::cuda::{SlotStreams, takes_slots};
use super::generate::refusal;
use super::streams_plain::PlainStreams;
use super::{Decoder, Finish, LmError, ModelConfig, SampleOptions};

/// Streams of one model: on a GPU in bf16 by recorded steps, elsewhere with plain operations.
pub struct Streams {
    config: ModelConfig,
    kind: Kind,
}

enum Kind {
    Plain(Box<PlainStreams>),
    Slots(Box<SlotStreams>),
}

/// A prompt to continue.
pub struct NewStream {
    /// The caller's name of it.
    pub id: u64,
    pub prompt: Vec<i64>,
    pub max_new_tokens: usize,
    pub sample: SampleOptions,
}

/// What a step gave a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advance {
    pub id: u64,
    /// None where a stop token was chosen.
    pub token: Option<i64>,
    /// Set with the last one of a stream, which is gone then.
    pub finish: Option<Finish>,
    /// The model gave no numbers to choose by; the stream is gone.
    pub failed: bool,
}

impl Streams {
    /// At most `slots` streams at a time, of `decoder` with the adapter that is in it now.
    pub fn new(decoder: &Decoder, config: &ModelConfig, stop_ids: &[i64], slots: usize) -> Self {
        Self {
            config: config.clone(),
            kind: match takes_slots(decoder) {
                true => Kind::Slots(Box::new(SlotStreams::new(config, stop_ids, slots))),
                false => Kind::Plain(Box::new(PlainStreams::new(config, stop_ids))),
            },
        }
    }

    /// Streams under way.
    pub fn len(&self) -> usize {
        match &self.kind {
            Kind::Plain(streams) => streams.len(),
            Kind::Slots(streams) => streams.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Why a prompt cannot be continued by `max_new_tokens`.
    pub fn refusal(&self, prompt: &[i64], max_new_tokens: usize) -> Option<LmError> {
        let limit = usize::try_from(self.config.context).unwrap_or(usize::MAX);
        let tokens = prompt.len().saturating_add(max_new_tokens);
        refusal(&self.config, prompt)
            .or((tokens > limit).then_some(LmError::Context { tokens, limit }))
    }

    /// Computes the prompts of new streams, none of which is refused, and gives each its first token; others may get
    /// tokens too.
    ///
    /// # Errors
    /// [`LmError::Torch`], out of memory included; the new streams are not there then.
    pub fn join(
        &mut self,
        decoder: &Decoder,
        new: Vec<NewStream>,
    ) -> Result<Vec<Advance>, LmError> {
        if new.is_empty() {
            return Ok(Vec::new());
        }
        match &mut self.kind {
            Kind::Plain(streams) => streams.join(decoder, new),
            Kind::Slots(streams) => streams.join(decoder, new),
        }
    }

    /// Gives every stream its next tokens: one, or on a GPU some, which are those of the call before. What a stream gets
    /// stands together, in order.
    ///
    /// # Errors
    /// [`LmError::Torch`], out of memory included: no stream can be continued then.
    pub fn step(&mut self, decoder: &Decoder) -> Result<Vec<Advance>, LmError> {
        match &mut self.kind {
            Kind::Plain(streams) => streams.step(decoder),
            Kind::Slots(streams) => streams.step(decoder),
        }
    }

    /// Ends a stream before its time.
    ///
    /// # Errors
    /// [`LmError::Torch`]: no stream can be continued then.
    pub fn leave(&mut self, decoder: &Decoder, id: u64) -> Result<(), LmError> {
        match &mut self.kind {
            Kind::Plain(streams) => streams.leave(id),
            Kind::Slots(streams) => return streams.leave(decoder, id),
        }
        Ok(())
    }
}
