//! What a GPU knows of the rows it continues: one slot each, refilled when its row is done.

use tch::{Device, Kind, Tensor};

use crate::lm::LmError;

/// States of a slot, as in `sample.cu`; any other number: the row has all the tokens it may have.
pub const RUNNING: i32 = 1;
pub const STOPPED: i32 = 2;
pub const FAILED: i32 = 4;

/// Tokens, counters and bit sets of all slots, on the device. The columns of `counters` are read by kernels one by one.
pub struct Slots {
    /// i32 [slots, capacity]: prompt and new tokens.
    pub history: Tensor,
    /// i32 [4, slots]: tokens in the history, new ones among them, new ones allowed, state.
    counters: Tensor,
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
    /// `limit` draws, where tokens are drawn.
    pub uniforms: Vec<f64>,
}

/// What the host reads of the slots: per slot (tokens, new ones among them, state).
pub type Progress = Vec<(usize, usize, i32)>;

impl Slots {
    /// # Errors
    /// Out of memory.
    pub fn new(
        slots: i64,
        capacity: i64,
        vocab: i64,
        device: Device,
        [seen, banned]: [bool; 2],
        draws: Option<i64>,
    ) -> Result<Self, LmError> {
        let zeros = |shape: [i64; 2], kind| Tensor::f_zeros(shape, (kind, device));
        let set = |wanted: bool| match wanted {
            true => zeros([slots, (vocab + 31) / 32], Kind::Int).map(Some),
            false => Ok(None),
        };
        Ok(Self {
            history: zeros([slots, capacity], Kind::Int)?,
            counters: zeros([4, slots], Kind::Int)?,
            seen: set(seen)?,
            banned: set(banned)?,
            uniforms: match draws {
                Some(draws) => Some(zeros([slots, draws.max(1)], Kind::Double)?),
                None => None,
            },
            device,
        })
    }

    pub fn capacity(&self) -> i64 {
        self.history.size()[1]
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
        let column = |of: &dyn Fn(&Admission<'_>) -> i64| -> Vec<i32> {
            rows.iter().map(|row| int(of(row))).collect()
        };
        let counters = [
            column(&|row| row.prompt.len() as i64),
            column(&|_| 0),
            column(&|row| row.limit as i64),
            column(&|_| i64::from(RUNNING)),
        ]
        .concat();
        let counters = Tensor::from_slice(&counters).f_view([4, rows.len() as i64])?;
        let _ = self.counters.shallow_clone().f_index_copy_(
            1,
            &index,
            &counters.f_to_device(self.device)?,
        )?;
        for set in [&self.seen, &self.banned].into_iter().flatten() {
            let _ = set.shallow_clone().f_index_fill_(0, &index, 0)?;
        }
        if let Some(all) = &self.uniforms {
            let width = all.size()[1] as usize;
            let mut draws = vec![0.0; rows.len() * width];
            for (row, line) in rows.iter().zip(draws.chunks_mut(width)) {
                line[..row.uniforms.len()].copy_from_slice(&row.uniforms);
            }
            let draws = Tensor::from_slice(&draws).f_view([rows.len() as i64, width as i64])?;
            let _ =
                all.shallow_clone()
                    .f_index_copy_(0, &index, &draws.f_to_device(self.device)?)?;
        }
        Ok(())
    }

    /// Waits for the device.
    ///
    /// # Errors
    /// What kernels before it ran into.
    pub fn progress(&self) -> Result<Progress, LmError> {
        let counters =
            Vec::<i32>::try_from(self.counters.f_to_device(Device::Cpu)?.f_flatten(0, 1)?)?;
        let slots = counters.len() / 4;
        let count = |at: usize| usize::try_from(counters[at]).unwrap_or(0);
        Ok((0..slots)
            .map(|slot| (count(slot), count(slots + slot), counters[3 * slots + slot]))
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

/// Token ids and lengths are far below 2³¹.
fn int(number: i64) -> i32 {
    i32::try_from(number).expect("a token id or a length")
}
