//! How a micro-batch is cut so that a step fits the memory there is.

use super::TrainEngine;
use crate::lm::Recompute;

/// Shorter passes leave a GPU idle; below this, computing layers twice is cheaper than shortening them further.
const SHORT: u64 = 2048;
/// Bytes that a chunk of logits may take.
const HEAD_BYTES: u64 = 5 << 29;

/// How passes over the model are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fit {
    /// The most tokens of a pass.
    pub max_tokens: u64,
    /// Layers that keep what their backward pass needs, from the last.
    pub kept: usize,
    /// Bytes for a chunk of logits.
    pub head_bytes: u64,
}

/// Bytes that a pass takes, beyond weights and parameters.
#[derive(Clone, Copy, Debug)]
pub struct Footprint {
    pub layers: u64,
    /// Of a token in a layer that keeps what its backward pass needs, and in one that keeps its input.
    pub kept: u64,
    pub input: u64,
    /// Of a token while a layer is computed.
    pub working: u64,
}

impl TrainEngine {
    /// What a pass of this model takes.
    pub fn footprint(&self) -> Footprint {
        let [qkv, o, gate_up, down] = &self.layers[0];
        let shape = |place: &super::engine::EngineLinear| {
            let shape = place.lora.shape();
            (
                shape.in_features as u64,
                shape.out_features as u64,
                shape.low() as u64,
            )
        };
        let (hidden, qkv_out, _) = shape(qkv);
        let (attended, ..) = shape(o);
        let (_, both, _) = shape(gate_up);
        let (width, ..) = shape(down);
        let low: u64 = [qkv, o, gate_up, down]
            .map(|place| shape(place).2)
            .iter()
            .sum();
        let rotated = (self.heads.rotated() * self.heads.dim) as u64;
        let kept = 2 * (2 * hidden + qkv_out + rotated + attended + both + low)
            + 4 * self.heads.query as u64;
        // The gradient through the MLP, or that through attention with its own copies of queries, keys and values.
        let back = (2 * width + hidden).max(3 * qkv_out + 2 * attended);
        Footprint {
            layers: self.layers.len() as u64,
            kept,
            input: 2 * hidden,
            working: 2 * (back + 8 * hidden + low) + 64,
        }
    }
}

impl Footprint {
    /// The cut for micro-batches of at most `batch` tokens made of sequences of at most `longest`, in `budget` bytes.
    pub fn fit(&self, batch: u64, longest: u64, budget: u64, recompute: Recompute) -> Fit {
        let head_bytes = (budget / 16).clamp(64 << 20, HEAD_BYTES);
        let budget = budget.saturating_sub(head_bytes);
        let all = self.layers * self.kept + self.working;
        let none = self.layers * self.input + self.kept + self.working;
        let without = (budget / all).max(longest.min(SHORT));
        let fit = |max_tokens: u64, kept: u64| Fit {
            max_tokens,
            kept: usize::try_from(kept).unwrap_or(usize::MAX),
            head_bytes,
        };
        let enough = without >= batch || without >= longest.max(SHORT);
        match recompute {
            Recompute::None => fit(even(batch, without.max(longest)), self.layers),
            Recompute::Auto if enough => fit(even(batch, without), self.layers),
            _ => {
                let tokens = even(batch, (budget / none).max(longest));
                let left = (budget / tokens.max(1)).saturating_sub(none);
                let kept = match recompute {
                    Recompute::Full => 0,
                    _ => (left / (self.kept - self.input)).min(self.layers),
                };
                fit(tokens, kept)
            }
        }
    }
}

/// Passes of about the same length: `batch` over as few parts as `most` tokens allow.
fn even(batch: u64, most: u64) -> u64 {
    let parts = batch.div_ceil(most.max(1)).max(1);
    // Sequences do not end where parts should, so a part may be somewhat longer, but never than `most`.
    (batch.div_ceil(parts) + batch / 16 / parts).min(most.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// About Qwen3-4B.
    const FOOTPRINT: Footprint = Footprint {
        layers: 36,
        kept: 70_000,
        input: 5120,
        working: 160_000,
    };

    fn fit(budget: u64, recompute: Recompute) -> Fit {
        FOOTPRINT.fit(32_768, 1024, budget << 30, recompute)
    }

    fn bytes(fit: Fit) -> u64 {
        let (kept, layers) = (fit.kept as u64, FOOTPRINT.layers);
        let recomputing = if kept == layers { 0 } else { FOOTPRINT.kept };
        let per_token = kept * FOOTPRINT.kept
            + (layers - kept) * FOOTPRINT.input
            + recomputing
            + FOOTPRINT.working;
        fit.max_tokens.min(32_768) * per_token + fit.head_bytes
    }

    #[test]
    fn a_large_card_keeps_everything() {
        let fit = fit(110, Recompute::Auto);
        assert_eq!(fit.kept, 36);
        assert!(fit.max_tokens >= 32_768);
    }

    #[test]
    fn shorter_passes_come_before_computing_twice() {
        let short = fit(7, Recompute::Auto);
        assert_eq!(short.kept, 36);
        assert!((2048..4096).contains(&short.max_tokens), "{short:?}");
        let tight = fit(4, Recompute::Auto);
        assert!(tight.kept < 36 && tight.max_tokens > 2048, "{tight:?}");
    }

    #[test]
    fn what_is_planned_fits() {
        for budget in [3, 4, 7, 12, 24, 60, 110, 140] {
            for recompute in [Recompute::Auto, Recompute::Full] {
                let fit = fit(budget, recompute);
                assert!(bytes(fit) <= budget << 30, "{budget} GiB: {fit:?}");
            }
        }
    }

    #[test]
    fn what_is_asked_for_is_done() {
        assert_eq!(fit(110, Recompute::Full).kept, 0);
        assert_eq!(fit(4, Recompute::None).kept, 36);
    }
}
