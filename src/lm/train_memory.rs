//! How a run lives within the memory there is: how long its passes are, and which layers keep their graphs.

use super::backward::TrainBatch;
use super::gpu_training::GpuTraining;
use super::{Decoder, Placement, Recompute, memory};

/// Tokens of one forward pass on a CPU: enough for full speed, few enough to keep what the backward pass needs.
const CPU_TOKENS: u64 = 4096;

pub(super) struct TrainMemory {
    recompute: Recompute,
    /// The most tokens of one forward pass.
    max_tokens: u64,
    /// Bytes that graphs kept for the backward pass may take; the engine of a GPU plans for itself.
    kept_bytes: u64,
}

impl TrainMemory {
    pub(super) fn new(
        recompute: Recompute,
        placement: Placement,
        gpu: Option<&GpuTraining>,
    ) -> Self {
        Self {
            recompute,
            max_tokens: match gpu {
                Some(gpu) => gpu.max_tokens(),
                None if placement.is_cpu() => CPU_TOKENS,
                None => u64::MAX,
            },
            kept_bytes: match recompute {
                Recompute::None => u64::MAX,
                Recompute::Full => 0,
                Recompute::Auto => memory::available(placement.device).unwrap_or(0) / 2,
            },
        }
    }

    /// The most tokens of one forward pass.
    pub(super) fn max_tokens(&self) -> u64 {
        self.max_tokens
    }

    /// Goes on with the passes of an earlier process, so that dropout drops the same.
    pub(super) fn restore(&mut self, max_tokens: u64) {
        self.max_tokens = max_tokens;
    }

    /// Layers whose graphs fit into memory for a pass over `batch`.
    pub(super) fn kept_layers(&self, decoder: &Decoder, batch: &TrainBatch) -> usize {
        let layers = decoder.layers().len();
        let per_layer = graph_bytes(decoder, batch);
        usize::try_from(self.kept_bytes / per_layer.max(1)).map_or(layers, |kept| kept.min(layers))
    }

    /// Asks for less memory: first by keeping fewer graphs, then by shorter forward passes than the `longest` of several
    /// sequences. False where nothing is left to give up.
    pub(super) fn relieve(&mut self, gpu: Option<&mut GpuTraining>, longest: Option<u64>) -> bool {
        // Below this not even one layer of the longest pass is kept.
        const NOTHING: u64 = 64 << 20;
        if let Some(gpu) = gpu {
            let relieved = gpu.relieve();
            self.max_tokens = relieved.unwrap_or(u64::MAX).min(self.max_tokens);
            return relieved.is_some();
        }
        if self.recompute == Recompute::Auto && self.kept_bytes > 0 {
            self.kept_bytes = match self.kept_bytes > NOTHING {
                true => self.kept_bytes / 2,
                false => 0,
            };
            return true;
        }
        let shorter = longest.map(|longest| longest / 2);
        self.max_tokens = shorter.unwrap_or(self.max_tokens);
        shorter.is_some()
    }
}

/// Bytes that the graph of one layer holds, roughly: each linear layer's input and output, what dropout and the gate add
/// to them, the norms, and what attention keeps.
fn graph_bytes(decoder: &Decoder, batch: &TrainBatch) -> u64 {
    let element = decoder.placement().kind.elt_size_in_bytes() as i64;
    let Some(layer) = decoder.layers().first() else {
        return 0;
    };
    let linears: i64 = layer
        .linears()
        .iter()
        .map(|linear| 2 * (linear.in_features() + linear.out_features()))
        .sum();
    let norms = 6 * layer.linears()[0].in_features();
    let tokens = element * (linears + norms) * batch.tokens();
    tokens as u64 + batch.attention_bytes(decoder)
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    fn memory(recompute: Recompute) -> TrainMemory {
        let placement = Placement {
            device: Device::Cpu,
            kind: Kind::Float,
        };
        TrainMemory::new(recompute, placement, None)
    }

    #[test]
    fn graphs_are_given_up_before_passes_are_shortened() {
        let mut memory = memory(Recompute::Auto);
        let mut times = 0;
        while memory.kept_bytes > 0 {
            assert!(memory.relieve(None, Some(900)));
            assert_eq!(memory.max_tokens(), CPU_TOKENS);
            times += 1;
            assert!(times < 64);
        }
        assert!(memory.relieve(None, Some(900)));
        assert_eq!(memory.max_tokens(), 450);
    }

    #[test]
    fn a_pass_of_one_sequence_cannot_be_shortened() {
        let mut memory = memory(Recompute::Full);
        assert!(!memory.relieve(None, None));
        assert_eq!(memory.max_tokens(), CPU_TOKENS);
    }
}
