//! Base and tuned model from one set of weights: the adapter's part goes in and out of the decoder without being computed
//! again.

use super::lora::LoraUpdate;
use super::{Adapter, Decoder, LmError};

/// The updates of an adapter, in the decoder or beside it.
pub struct AdapterSwitch {
    /// By layer and linear layer; what the decoder has while the adapter is off is empty.
    beside: Vec<Option<LoraUpdate>>,
    on: bool,
}

impl AdapterSwitch {
    /// Takes `adapter` for inference with `decoder`, which goes on without it.
    ///
    /// # Errors
    /// What libtorch refuses, out of memory included.
    pub fn new(adapter: &Adapter, decoder: &mut Decoder) -> Result<Self, LmError> {
        adapter.install_for_inference(decoder)?;
        let count = decoder
            .layers()
            .iter()
            .map(|layer| layer.linears().len())
            .sum();
        let mut switch = Self {
            beside: std::iter::repeat_with(|| None).take(count).collect(),
            on: true,
        };
        switch.set(decoder, false);
        Ok(switch)
    }

    /// Makes `decoder`, the one it was made with, compute with the adapter or without.
    pub fn set(&mut self, decoder: &mut Decoder, on: bool) {
        if std::mem::replace(&mut self.on, on) == on {
            return;
        }
        let linears = decoder
            .layers_mut()
            .iter_mut()
            .flat_map(|layer| layer.linears_mut());
        for (linear, beside) in linears.zip(&mut self.beside) {
            linear.swap_update(beside);
        }
    }
}
