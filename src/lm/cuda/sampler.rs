//! The choice of the next tokens on the device, by the definition of `sample.rs`.

use tch::{Device, Kind, Tensor};

use super::compiler::{Source, source};
use super::module::{Kernel, Module, bf16_rows};
use super::slots::{RING, Slots};
use crate::lm::{LmError, SampleOptions};

pub(super) const SOURCE: Source = source!("sample.cu");

/// Blocks that share a row of logits in the greedy choice.
const PARTS: i64 = 8;

/// What the rows may ask for; kernels that none needs are not launched.
#[derive(Clone, Copy, Debug)]
pub struct Choices {
    /// Rows that take the best token, and rows that draw one.
    pub best: bool,
    pub drawn: bool,
    /// Rows with a repetition penalty, and rows that may not take some tokens.
    pub seen: bool,
    pub banned: bool,
}

impl Choices {
    /// Whatever a row asks for.
    pub const ALL: Self = Self {
        best: true,
        drawn: true,
        seen: true,
        banned: true,
    };

    /// What these options ask for.
    pub fn of(options: &SampleOptions) -> Self {
        let drawn = options.temperature > 0.0;
        Self {
            best: !drawn,
            drawn,
            seen: options.repetition_penalty != 1.0,
            banned: options.no_repeat_ngram > 0 || options.min_new_tokens > 0,
        }
    }
}

pub struct Sampler {
    embed_newest: Kernel,
    mark_seen: Kernel,
    ban: Kernel,
    best_of_part: Kernel,
    draw: Kernel,
    advance: Kernel,
    choices: Choices,
    /// i32, at least one so that it has an address.
    stops: Tensor,
    stop_count: i64,
    /// Candidates: i32 [rows, PARTS, 2].
    best: Tensor,
}

impl Sampler {
    /// For at most `rows` rows.
    ///
    /// # Errors
    /// [`LmError::Kernel`]; out of memory.
    pub fn new(
        choices: Choices,
        stop_ids: &[i64],
        rows: i64,
        device: Device,
    ) -> Result<Self, LmError> {
        let module = Module::get(SOURCE, device, &[])?;
        let stops = match stop_ids {
            [] => &[-1],
            ids => ids,
        };
        Ok(Self {
            embed_newest: module.kernel("embed_newest")?,
            mark_seen: module.kernel("mark_seen")?,
            ban: module.kernel("ban")?,
            best_of_part: module.kernel("best_of_part")?,
            draw: module.kernel("draw")?,
            advance: module.kernel("advance")?,
            choices,
            stops: Tensor::from_slice(stops)
                .f_to_kind(Kind::Int)?
                .f_to_device(device)?,
            stop_count: stop_ids.len() as i64,
            best: Tensor::f_empty([rows, PARTS, 2], (Kind::Int, device))?,
        })
    }

    /// The embeddings of the newest tokens of the slots `rows` (i32 [rows]) into `x` [rows, hidden], and their positions
    /// into `positions` (i32 [rows]; -1 where the slot is done).
    ///
    /// # Errors
    /// [`LmError::Kernel`].
    pub fn embed_newest(
        &self,
        embedding: &Tensor,
        slots: &Slots,
        rows: &Tensor,
        positions: &Tensor,
        x: &Tensor,
    ) -> Result<(), LmError> {
        let (count, hidden) = (rows.size()[0], embedding.size()[1]);
        assert_eq!((bf16_rows(embedding), bf16_rows(x)), (hidden, hidden));
        assert_eq!([x.size()[0], positions.size()[0]], [count, count]);
        self.embed_newest.launch(
            [count, 1, 1],
            128,
            &[
                embedding.into(),
                (&slots.history).into(),
                (&slots.length()).into(),
                (&slots.state()).into(),
                rows.into(),
                positions.into(),
                x.into(),
                slots.capacity().into(),
                hidden.into(),
            ],
        )
    }

    /// Enters the prompts of newly admitted slots into their sets.
    ///
    /// # Errors
    /// [`LmError::Kernel`].
    pub fn begin(&self, slots: &Slots, rows: &Tensor, vocab: i64) -> Result<(), LmError> {
        let Some(seen) = &slots.seen else {
            return Ok(());
        };
        self.mark_seen.launch(
            [rows.size()[0], 1, 1],
            128,
            &[
                (&slots.history).into(),
                (&slots.length()).into(),
                rows.into(),
                seen.into(),
                slots.capacity().into(),
                vocab.into(),
            ],
        )
    }

    /// Chooses and takes a token for every running slot of `rows` (i32 [rows]). `logits`: bf16 [rows, vocab].
    ///
    /// # Errors
    /// [`LmError::Kernel`].
    pub fn choose(&self, slots: &Slots, rows: &Tensor, logits: &Tensor) -> Result<(), LmError> {
        let (count, vocab) = (rows.size()[0], logits.size()[1]);
        assert_eq!((bf16_rows(logits), logits.size()[0]), (vocab, count));
        let (length, made, limit, state) =
            (slots.length(), slots.made(), slots.limit(), slots.state());
        let (seen, banned) = (slots.seen.as_ref(), slots.banned.as_ref());
        let capacity = slots.capacity();
        let (ngram, minimum) = (slots.no_repeat_ngram(), slots.min_new_tokens());
        let (penalty, temperature) = (slots.repetition_penalty(), slots.temperature());
        if let Some(banned) = banned {
            let arguments = [
                (&slots.history).into(),
                (&length).into(),
                (&made).into(),
                (&state).into(),
                rows.into(),
                banned.into(),
                capacity.into(),
                vocab.into(),
                (&ngram).into(),
                (&minimum).into(),
                (&self.stops).into(),
                self.stop_count.into(),
            ];
            self.ban.launch([count, 1, 1], 256, &arguments)?;
        }
        if let Some(uniforms) = &slots.uniforms
            && self.choices.drawn
        {
            let arguments = [
                logits.into(),
                seen.into(),
                banned.into(),
                (&penalty).into(),
                (&state).into(),
                rows.into(),
                (&made).into(),
                uniforms.into(),
                uniforms.size()[1].into(),
                (&self.best).into(),
                PARTS.into(),
                vocab.into(),
                (&temperature).into(),
                (&slots.top_k()).into(),
                (&slots.top_p()).into(),
            ];
            self.draw.launch([count, 1, 1], 1024, &arguments)?;
        }
        if self.choices.best {
            let arguments = [
                logits.into(),
                seen.into(),
                banned.into(),
                (&penalty).into(),
                (&temperature).into(),
                (&state).into(),
                rows.into(),
                (&self.best).into(),
                vocab.into(),
            ];
            self.best_of_part
                .launch([PARTS, count, 1], 256, &arguments)?;
        }
        let arguments = [
            (&self.best).into(),
            PARTS.into(),
            (&slots.history).into(),
            (&length).into(),
            (&made).into(),
            (&limit).into(),
            (&state).into(),
            rows.into(),
            seen.into(),
            banned.into(),
            capacity.into(),
            vocab.into(),
            (&ngram).into(),
            (&minimum).into(),
            (&temperature).into(),
            (&self.stops).into(),
            self.stop_count.into(),
            (&slots.recent()).into(),
            RING.into(),
            slots.count().into(),
        ];
        self.advance.launch([count, 1, 1], 128, &arguments)
    }
}
