//! A model that continues rows in slots: prompts are computed together, steps are recorded once and replayed.

use std::collections::HashMap;

use tch::{Kind, Tensor};

use super::decode_step::{DecodeStep, decodes};
use super::forward::FusedForward;
use super::graph::{Graph, OwnStream};
use super::rotate::CacheRows;
use super::sampler::{Choices, Sampler};
use super::slots::{Admission, Slots};
use crate::lm::attention::Varlen;
use crate::lm::{Batch, Decoder, LmError, ModelConfig};

/// Prompt tokens computed together.
pub const PREFILL_TOKENS: usize = 16_384;

/// How much there is room for.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    pub slots: usize,
    /// Tokens of a slot.
    pub capacity: i64,
    pub choices: Choices,
    /// New tokens of a row that is drawn.
    pub draws: i64,
}

/// Slots with their keys and values. All of it lies where it is as long as this lives, and is used on the stream that the
/// caller has entered.
pub struct SlotDecoder {
    pub slots: Slots,
    room: Room,
    sampler: Sampler,
    step: DecodeStep,
    /// Per layer keys and values, each [slots, kv_heads, capacity, D].
    layers: Vec<(Tensor, Tensor)>,
    /// By number of rows: recorded after it has run once, when all libraries are set up for its shapes.
    graphs: HashMap<i64, Option<Graph>>,
    /// The slots that the rows of a step have now.
    order: Vec<i32>,
}

/// Whether `decoder` can be continued in slots.
pub fn takes(decoder: &Decoder) -> bool {
    decoder.fused().is_some_and(|fused| decodes(decoder, fused))
}

/// Of a decoder that `takes` has been asked about.
fn fused(decoder: &Decoder) -> &FusedForward {
    decoder.fused().expect("asked by `takes` before")
}

impl SlotDecoder {
    /// # Errors
    /// [`LmError::Kernel`]; out of memory.
    pub fn new(
        decoder: &Decoder,
        config: &ModelConfig,
        stop_ids: &[i64],
        room: Room,
    ) -> Result<Self, LmError> {
        let placement = decoder.placement();
        let device = placement.device;
        let (count, capacity) = (room.slots as i64, room.capacity);
        let cache = || {
            let shape = [count, config.kv_heads, capacity, config.head_dim];
            Tensor::f_zeros(shape, (placement.kind, device))
        };
        Ok(Self {
            layers: (0..config.layers)
                .map(|_| Ok((cache()?, cache()?)))
                .collect::<Result<_, LmError>>()?,
            slots: Slots::new(
                count,
                capacity,
                config.vocab,
                device,
                room.choices,
                room.draws,
            )?,
            sampler: Sampler::new(room.choices, stop_ids, count, device)?,
            step: DecodeStep::new(decoder, fused(decoder), count, capacity)?,
            graphs: HashMap::new(),
            order: Vec::new(),
            room,
        })
    }

    pub fn room(&self) -> Room {
        self.room
    }

    /// Bytes of keys and values.
    pub fn cache_bytes(config: &ModelConfig, room: &Room) -> i64 {
        2 * 2
            * config.layers
            * room.slots as i64
            * config.kv_heads
            * room.capacity
            * config.head_dim
    }

    /// Takes over the rows of `smaller`, which has as many slots but shorter ones.
    ///
    /// # Errors
    /// What libtorch refuses.
    pub fn take_over(&self, smaller: &Self) -> Result<(), LmError> {
        let rows = |of: &Self| -> Vec<Tensor> {
            let caches = of.layers.iter().flat_map(|(keys, values)| [keys, values]);
            let all = of.slots.tensors().into_iter().chain(caches);
            all.map(Tensor::shallow_clone).collect()
        };
        for (mut wide, narrow) in rows(self).into_iter().zip(rows(smaller)) {
            for (dim, size) in (0_i64..).zip(narrow.size()) {
                wide = wide.f_narrow(dim, 0, size)?;
            }
            wide.f_copy_(&narrow)?;
        }
        Ok(())
    }

    /// Computes the prompts of new rows and takes their first tokens.
    ///
    /// # Errors
    /// [`LmError::Kernel`] and [`LmError::Torch`], out of memory included.
    pub fn prefill(
        &self,
        decoder: &Decoder,
        admissions: &[Admission<'_>],
        attention: &Varlen,
    ) -> Result<(), LmError> {
        let device = decoder.placement().device;
        self.slots.admit(admissions)?;
        let prompts: Vec<&[i64]> = admissions.iter().map(|row| row.prompt).collect();
        let batch = Batch::pack(&prompts, device);
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
        let hidden = fused(decoder).forward(
            decoder,
            &batch.ids,
            &batch.positions,
            &Tensor::from_slice(&ends).f_to_device(device)?,
            Some(&cache),
            &mut |_, q, k, v| attention.attend(q, k, v),
        )?;
        let logits = decoder.logits(&hidden);
        let index: Vec<i32> = admissions.iter().map(|row| row.slot as i32).collect();
        let index = Tensor::from_slice(&index).f_to_device(device)?;
        self.sampler.begin(&self.slots, &index, decoder.vocab())?;
        self.sampler.choose(&self.slots, &index, &logits)
    }

    /// Launches `count` steps of the slots that are `busy`, and does not wait for them.
    ///
    /// # Errors
    /// [`LmError::Kernel`] and [`LmError::Torch`].
    pub fn steps(
        &mut self,
        stream: &OwnStream,
        decoder: &Decoder,
        busy: &[bool],
        count: usize,
    ) -> Result<(), LmError> {
        let rows = self.arrange(busy)?;
        for _ in 0..count {
            match self.graphs.get(&rows) {
                Some(Some(graph)) => stream.replay(graph)?,
                Some(None) => {
                    let graph = stream.record(|| self.run_step(decoder, rows))?;
                    stream.replay(&graph)?;
                    self.graphs.insert(rows, Some(graph));
                }
                None => {
                    self.run_step(decoder, rows)?;
                    self.graphs.insert(rows, None);
                }
            }
        }
        Ok(())
    }

    fn run_step(&self, decoder: &Decoder, rows: i64) -> Result<(), LmError> {
        self.step.run(
            decoder,
            fused(decoder),
            &self.sampler,
            &self.slots,
            &self.layers,
            rows,
        )
    }

    /// Brings the slots under way to the front of a step and says how many rows it takes: all slots, or half of them, or
    /// a quarter and so on where that is enough.
    fn arrange(&mut self, busy: &[bool]) -> Result<i64, LmError> {
        let (busy, idle): (Vec<usize>, Vec<usize>) = (0..busy.len()).partition(|&slot| busy[slot]);
        let mut rows = self.room.slots;
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
}
