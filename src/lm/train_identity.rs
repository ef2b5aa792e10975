//! What a training run is: whether its data can be trained on, and what tells it from other runs.

use super::loss::IGNORED;
use super::{Decoder, Example, LmError, LoraConfig, Recompute, TrainConfig};

/// Everything the bits of a run follow from, but the base model, as a hash.
pub(super) fn identity(
    lora: &LoraConfig,
    train: &[Example],
    validation: &[Example],
    config: &TrainConfig,
) -> String {
    let settings = TrainConfig {
        recompute: Recompute::Auto,
        memory_limit: None,
        checkpoint_every: 1,
        ..config.clone()
    };
    let mut hasher = blake3::Hasher::new();
    hasher.update(serde_json::json!([lora, settings]).to_string().as_bytes());
    for examples in [train, validation] {
        hasher.update(&(examples.len() as u64).to_le_bytes());
        for example in examples {
            hasher.update(&(example.ids.len() as u64).to_le_bytes());
            for number in example.ids.iter().chain(&example.labels) {
                hasher.update(&number.to_le_bytes());
            }
        }
    }
    hasher.finalize().to_hex().to_string()
}

pub(super) fn check_examples(
    decoder: &Decoder,
    train: &[Example],
    validation: &[Example],
) -> Result<(), LmError> {
    if train.is_empty() {
        return Err(LmError::Training(
            "there is no example to train on".to_owned(),
        ));
    }
    let vocabulary = decoder.head_weight().size()[0];
    for example in train.iter().chain(validation) {
        let fits = example.ids.iter().all(|id| (0..vocabulary).contains(id))
            && example
                .labels
                .iter()
                .all(|label| *label == IGNORED || (0..vocabulary).contains(label));
        if !fits || example.trained() == 0 || example.ids.len() != example.labels.len() {
            return Err(LmError::Training(format!(
                "example `{}` cannot be trained on",
                example.id
            )));
        }
    }
    Ok(())
}
