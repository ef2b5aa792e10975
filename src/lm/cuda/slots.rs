//! What a GPU knows of the rows it continues: one slot each, refilled when its row is done.

use tch::{Device, Kind, Tensor};

use super::sampler::Choices;
use crate::lm::{LmError, SampleOptions};

/// States of a slot, as in `sample.cu`; any other number: the row has all the tokens it may have.
pub const RUNNING: i32 = 1;
pub const STOPPED: i32 = 2;
pub const FAILED: i32 = 4;
/// New tokens of a row that are at hand without reading its history.
pub const RING: i64 = 8;

/// Tokens, counters and bit sets of all slots, on the device. The columns of `counters` are read by kernels one by one.
pub struct Slots {
    /// i32 [slots, capacity]: prompt and new tokens.
    pub history: Tensor,
    /// i32 [4 + RING, slots]: tokens in the history, new ones among them, new ones allowed, state; the newest tokens, each
    /// at its number modulo RING.
    counters: Tensor,
    /// How rows choose. i32 [3, slots]: top-k, size of n-grams that do not come back, fewest new tokens. f64 [3, slots]:
    /// repetition penalty, temperature, top-p.
    counts: Tensor,
    factors: Tensor,
    /// i32 [slots, words]: tokens of the history, where something asks for them.
    pub seen: Option<Tensor>,
    /// i32 [slots, words]: empty between steps.
    pub banned: Option<Tensor>,
    /// f64 [slots, new tokens]: the draws of each row's random stream, where tokens are drawn.
    pub uniforms: Option<Tensor>,
    device: Device,
}

/// What a slot begins with.
pub struct Admission<'a> {
    pub slot: usize,
    pub prompt: &'a [i64],
    pub limit: usize,
    pub sample: &'a SampleOptions,
    /// `limit` draws, where tokens are drawn.
    pub uniforms: Vec<f64>,
}

/// What the host reads of a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Tokens, and the new ones among them.
    pub length: usize,
    pub made: usize,
    pub state: i32,
    recent: [i32; RING as usize],
}

impl Progress {
    /// New token `number`, one of the last RING.
    pub fn token(&self, number: usize) -> i64 {
        debug_assert!(number < self.made && number + self.recent.len() >= self.made);
        i64::from(self.recent[number % self.recent.len()])
    }
}

impl Slots {
    /// `draws`: the most new tokens of a row that is drawn.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(
        slots: i64,
        capacity: i64,
        vocab: i64,
        device: Device,
        choices: Choices,
        draws: i64,
    ) -> Result<Self, LmError> {
        let zeros = |shape: [i64; 2], kind| Tensor::f_zeros(shape, (kind, device));
        let set = |wanted: bool| match wanted {
            true => zeros([slots, (vocab + 31) / 32], Kind::Int).map(Some),
            false => Ok(None),
        };
        Ok(Self {
            history: zeros([slots, capacity], Kind::Int)?,
            counters: zeros([4 + RING, slots], Kind::Int)?,
            counts: zeros([3, slots], Kind::Int)?,
            factors: zeros([3, slots], Kind::Double)?,
            seen: set(choices.seen)?,
            banned: set(choices.banned)?,
            uniforms: match choices.drawn {
                true => Some(zeros([slots, draws.max(1)], Kind::Double)?),
                false => None,
            },
            device,
        })
    }

    pub fn capacity(&self) -> i64 {
        self.history.size()[1]
    }

    /// How many slots there are.
    pub fn count(&self) -> i64 {
        self.history.size()[0]
    }

    pub fn length(&self) -> Tensor {
        self.counters.get(0)
    }

    pub fn made(&self) -> Tensor {
        self.counters.get(1)
    }

    pub fn limit(&self) -> Tensor {
        self.counters.get(2)
    }

    pub fn state(&self) -> Tensor {
        self.counters.get(3)
    }

    pub fn recent(&self) -> Tensor {
        self.counters.narrow(0, 4, RING)
    }

    pub fn top_k(&self) -> Tensor {
        self.counts.get(0)
    }

    pub fn no_repeat_ngram(&self) -> Tensor {
        self.counts.get(1)
    }

    pub fn min_new_tokens(&self) -> Tensor {
        self.counts.get(2)
    }

    pub fn repetition_penalty(&self) -> Tensor {
        self.factors.get(0)
    }

    pub fn temperature(&self) -> Tensor {
        self.factors.get(1)
    }

    pub fn top_p(&self) -> Tensor {
        self.factors.get(2)
    }

    /// Puts new rows into slots.
    ///
    /// # Errors
    /// What libtorch refuses.
    pub fn admit(&self, rows: &[Admission<'_>]) -> Result<(), LmError> {
        let index: Vec<i64> = rows.iter().map(|row| row.slot as i64).collect();
        let index = Tensor::from_slice(&index).f_to_device(self.device)?;
        let longest = rows.iter().map(|row| row.prompt.len()).max().unwrap_or(0);
        let mut tokens = vec![0_i32; rows.len() * longest];
        for (row, line) in rows.iter().zip(tokens.chunks_mut(longest.max(1))) {
            for (place, id) in line.iter_mut().zip(row.prompt) {
                *place = int(*id);
            }
        }
        let tokens = Tensor::from_slice(&tokens).f_view([rows.len() as i64, longest as i64])?;
        let mut part = self.history.f_narrow(1, 0, longest as i64)?;
        let _ = part.f_index_copy_(0, &index, &tokens.f_to_device(self.device)?)?;
        let count = rows.len() as i64;
        let columns = |of: &[&dyn Fn(&Admission<'_>) -> i64]| -> Result<Tensor, LmError> {
            let all = of.iter().flat_map(|of| rows.iter().map(|row| int(of(row))));
            let columns = Tensor::from_slice(&all.collect::<Vec<i32>>());
            Ok(columns.f_view([-1, count])?.f_to_device(self.device)?)
        };
        let size = |number: usize| i64::try_from(number).map_or(MOST, |number| number.min(MOST));
        let counters = columns(&[
            &|row| row.prompt.len() as i64,
            &|_| 0,
            &|row| row.limit as i64,
            &|_| i64::from(RUNNING),
        ])?;
        let mut part = self.counters.f_narrow(0, 0, 4)?;
        let _ = part.f_index_copy_(1, &index, &counters)?;
        let counts = columns(&[
            &|row| size(row.sample.top_k),
            &|row| size(row.sample.no_repeat_ngram),
            &|row| size(row.sample.min_new_tokens),
        ])?;
        let _ = self
            .counts
            .shallow_clone()
            .f_index_copy_(1, &index, &counts)?;
        let factors: [fn(&SampleOptions) -> f64; 3] = [
            |sample| sample.repetition_penalty,
            |sample| sample.temperature,
            |sample| sample.top_p,
        ];
        let factors = factors
            .iter()
            .flat_map(|of| rows.iter().map(|row| of(row.sample)));
        let factors = Tensor::from_slice(&factors.collect::<Vec<f64>>());
        let factors = factors.f_view([3, count])?.f_to_device(self.device)?;
        let _ = self
            .factors
            .shallow_clone()
            .f_index_copy_(1, &index, &factors)?;
        for set in [&self.seen, &self.banned].into_iter().flatten() {
            let _ = set.shallow_clone().f_index_fill_(0, &index, 0)?;
        }
        if let Some(all) = &self.uniforms {
            let width = rows.iter().map(|row| row.uniforms.len()).max().unwrap_or(0);
            let mut draws = vec![0.0; rows.len() * width];
            for (row, line) in rows.iter().zip(draws.chunks_mut(width.max(1))) {
                line[..row.uniforms.len()].copy_from_slice(&row.uniforms);
            }
            let draws = Tensor::from_slice(&draws).f_view([count, width as i64])?;
            let mut part = all.f_narrow(1, 0, width as i64)?;
            let _ = part.f_index_copy_(0, &index, &draws.f_to_device(self.device)?)?;
        }
        Ok(())
    }

    /// Ends the row of a slot.
    ///
    /// # Errors
    /// What libtorch refuses.
    pub fn stop(&self, slot: usize) -> Result<(), LmError> {
        let _ = self
            .state()
            .f_narrow(0, slot as i64, 1)?
            .f_fill_(i64::from(STOPPED))?;
        Ok(())
    }

    /// All tensors, for those of more slots or longer ones to take over.
    pub fn tensors(&self) -> Vec<&Tensor> {
        let sets = [&self.seen, &self.banned, &self.uniforms];
        let always = [&self.history, &self.counters, &self.counts, &self.factors];
        always
            .into_iter()
            .chain(sets.into_iter().flatten())
            .collect()
    }

    /// Waits for the device.
    ///
    /// # Errors
    /// What kernels before it ran into.
    pub fn progress(&self) -> Result<Vec<Progress>, LmError> {
        let counters =
            Vec::<i32>::try_from(self.counters.f_to_device(Device::Cpu)?.f_flatten(0, 1)?)?;
        let slots = self.count() as usize;
        let count = |at: usize| usize::try_from(counters[at]).unwrap_or(0);
        Ok((0..slots)
            .map(|slot| Progress {
                length: count(slot),
                made: count(slots + slot),
                state: counters[3 * slots + slot],
                recent: std::array::from_fn(|at| counters[(4 + at) * slots + slot]),
            })
            .collect())
    }

    /// The histories of some slots.
    ///
    /// # Errors
    /// What libtorch refuses.
    pub fn histories(&self, slots: &[usize]) -> Result<Vec<Vec<i64>>, LmError> {
        let index: Vec<i64> = slots.iter().map(|&slot| slot as i64).collect();
        let index = Tensor::from_slice(&index).f_to_device(self.device)?;
        let rows = self.history.f_index_select(0, &index)?;
        let rows = rows.f_to_device(Device::Cpu)?.f_to_kind(Kind::Int64)?;
        let width = self.capacity() as usize;
        let all = Vec::<i64>::try_from(rows.f_flatten(0, 1)?)?;
        Ok(all.chunks(width).map(<[i64]>::to_vec).collect())
    }
}

/// Stands for all larger settings: there are fewer tokens.
const MOST: i64 = 1 << 30;

/// Token ids and lengths are far below 2³¹.
fn int(number: i64) -> i32 {
    i32::try_from(number).expect("a token id or a length")
}
