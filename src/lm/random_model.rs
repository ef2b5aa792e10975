//! Models of known shapes with random weights, made where they run: enough to measure speed and memory.

use super::{Decoder, Family, LmError, ModelConfig, Placement, Rope, RopeScaling, Weights};

/// The shapes that can be asked for.
pub const RANDOM_MODELS: [&str; 2] = ["qwen3-4b", "smollm2-135m"];

/// A decoder of the shape called `name`, one of [`RANDOM_MODELS`]; None for other names.
///
/// # Errors
/// What libtorch refuses, out of memory included.
pub fn random_model(
    name: &str,
    placement: Placement,
) -> Option<Result<(ModelConfig, Decoder), LmError>> {
    let config = shape(name)?;
    // The same weights every time: libtorch seeds its generators at random.
    tch::manual_seed(1);
    let decoder = Decoder::load(&config, &Weights::random(), placement);
    Some(decoder.map(|decoder| (config, decoder)))
}

/// As in the `config.json` of Qwen3-4B-Instruct-2507 and SmolLM2-135M-Instruct.
pub(super) fn shape(name: &str) -> Option<ModelConfig> {
    let rope = |theta| Rope {
        theta,
        scaling: RopeScaling::None,
    };
    match name {
        "qwen3-4b" => Some(ModelConfig {
            family: Family::Qwen3,
            layers: 36,
            hidden: 2560,
            heads: 32,
            kv_heads: 8,
            head_dim: 128,
            intermediate: 9728,
            vocab: 151_936,
            context: 262_144,
            norm_eps: 1e-6,
            rope: rope(5e6),
            tied: true,
        }),
        "smollm2-135m" => Some(ModelConfig {
            family: Family::Llama,
            layers: 30,
            hidden: 576,
            heads: 9,
            kv_heads: 3,
            head_dim: 64,
            intermediate: 1536,
            vocab: 49_152,
            context: 8192,
            norm_eps: 1e-5,
            rope: rope(1e5),
            tied: true,
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_have_the_known_numbers_of_parameters() {
        let linears = |name| {
            let shape = shape(name).unwrap();
            let attention = shape.hidden * (2 * shape.q_dim() + 2 * shape.kv_dim());
            attention + 3 * shape.hidden * shape.intermediate
        };
        assert_eq!(linears("qwen3-4b"), 100_925_440);
        assert_eq!(linears("smollm2-135m"), 3_538_944);
        assert!(shape("qwen3-5b").is_none());
    }
}
