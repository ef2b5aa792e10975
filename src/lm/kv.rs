//! The key-value cache of a batch that grows one token per row and step.

use tch::{Kind, Tensor};

use super::{LmError, ModelConfig, Placement, attention};

/// Keys and values of B sequences of different lengths, left-aligned.
pub(super) struct KvCache {
    /// Per layer keys and values, each [B, kv_heads, capacity, D].
    layers: Vec<(Tensor, Tensor)>,
    lengths: Vec<i64>,
    kv_heads: i64,
    capacity: i64,
    placement: Placement,
}

/// What every layer of one decoding step needs to know.
pub(super) struct Step {
    /// i64 [B]: the position of each row's new token.
    pub(super) positions: Tensor,
    /// i64 [B · kv_heads]: where the new keys and values go in the flattened cache.
    slots: Tensor,
    /// [B, 1, 1, longest]: 0 where a row has a token, −∞ behind its end.
    mask: Tensor,
    longest: i64,
}

impl KvCache {
    /// Room for `rows` sequences of `capacity` tokens.
    pub(super) fn new(
        config: &ModelConfig,
        placement: Placement,
        rows: usize,
        capacity: i64,
    ) -> Self {
        let shape = [rows as i64, config.kv_heads, capacity, config.head_dim];
        let zeros = || Tensor::zeros(shape, (placement.kind, placement.device));
        Self {
            layers: (0..config.layers).map(|_| (zeros(), zeros())).collect(),
            lengths: vec![0; rows],
            kv_heads: config.kv_heads,
            capacity,
            placement,
        }
    }

    /// Tokens that a row has room for.
    pub(super) fn capacity(&self) -> i64 {
        self.capacity
    }

    /// Tokens of the longest row.
    pub(super) fn longest(&self) -> i64 {
        self.lengths.iter().copied().max().unwrap_or(0)
    }

    /// Makes room for more rows or longer ones; what is there stays.
    ///
    /// # Errors
    /// Out of memory; nothing has changed then.
    pub(super) fn resize(&mut self, rows: usize, capacity: i64) -> Result<(), LmError> {
        if rows == self.lengths.len() && capacity == self.capacity {
            return Ok(());
        }
        let (old, kept) = (self.lengths.len() as i64, self.longest());
        let larger = |tensor: &Tensor| -> Result<Tensor, LmError> {
            let mut shape = tensor.size();
            (shape[0], shape[2]) = (rows as i64, capacity);
            let wide = Tensor::f_zeros(&shape, (self.placement.kind, self.placement.device))?;
            let mut place = wide.f_narrow(0, 0, old)?.f_narrow(2, 0, kept)?;
            place.f_copy_(&tensor.f_narrow(2, 0, kept)?)?;
            Ok(wide)
        };
        self.layers = self
            .layers
            .iter()
            .map(|(keys, values)| Ok((larger(keys)?, larger(values)?)))
            .collect::<Result<_, LmError>>()?;
        self.lengths.resize(rows, 0);
        self.capacity = capacity;
        Ok(())
    }

    /// Forgets a row.
    pub(super) fn clear(&mut self, row: usize) {
        self.lengths[row] = 0;
    }

    /// Stores a prompt's keys and values, each [n, kv_heads, D], as row `row` of `layer`.
    pub(super) fn fill(&mut self, layer: usize, row: usize, k: &Tensor, v: &Tensor) {
        let length = k.size()[0];
        for (cache, new) in [(&self.layers[layer].0, k), (&self.layers[layer].1, v)] {
            cache
                .get(row as i64)
                .narrow(1, 0, length)
                .copy_(&new.transpose(0, 1));
        }
        self.lengths[row] = length;
    }

    /// Prepares a step that adds one token to every row that is `growing`; what is computed for the others is not kept.
    pub(super) fn step(&mut self, growing: &[bool]) -> Step {
        let device = self.placement.device;
        let lengths = Tensor::from_slice(&self.lengths);
        let longest = self.lengths.iter().max().map_or(0, |length| length + 1);
        let heads = Tensor::arange(
            self.lengths.len() as i64 * self.kv_heads,
            (Kind::Int64, tch::Device::Cpu),
        );
        let slots =
            heads * self.capacity + lengths.repeat_interleave_self_int(self.kv_heads, 0, None);
        let behind = Tensor::arange(longest, (Kind::Int64, tch::Device::Cpu))
            .unsqueeze(0)
            .gt_tensor(&lengths.unsqueeze(1));
        let mask = Tensor::zeros(behind.size(), tch::kind::FLOAT_CPU)
            .masked_fill(&behind, f64::NEG_INFINITY)
            .to_kind(self.placement.kind)
            .view([-1, 1, 1, longest]);
        for (length, growing) in self.lengths.iter_mut().zip(growing) {
            *length += i64::from(*growing);
        }
        Step {
            positions: lengths.to_device(device),
            slots: slots.to_device(device),
            mask: mask.to_device(device),
            longest,
        }
    }

    /// Adds the step's keys and values [B, kv_heads, D] to `layer` and attends with `q` [B, heads, D].
    /// Returns [B, heads · D].
    pub(super) fn attend(
        &mut self,
        layer: usize,
        step: &Step,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
    ) -> Tensor {
        let (keys, values) = &mut self.layers[layer];
        let dim = k.size()[2];
        for (cache, new) in [(&mut *keys, k), (&mut *values, v)] {
            let _ = cache
                .view([-1, dim])
                .index_copy_(0, &step.slots, &new.reshape([-1, dim]));
        }
        let seen = |cache: &Tensor| cache.narrow(2, 0, step.longest);
        attention::decode(q, &seen(keys), &seen(values), &step.mask)
    }

    /// Keeps only the rows at `kept`, in that order.
    pub(super) fn compact(&mut self, kept: &[usize]) {
        let index: Vec<i64> = kept.iter().map(|&row| row as i64).collect();
        let index = Tensor::from_slice(&index).to_device(self.placement.device);
        for (keys, values) in &mut self.layers {
            *keys = keys.index_select(0, &index);
            *values = values.index_select(0, &index);
        }
        self.lengths = kept.iter().map(|&row| self.lengths[row]).collect();
    }
}
