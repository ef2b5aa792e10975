//! Fine-tuning of an adapter on a frozen decoder.
//!
//! The gradient of a step is the sum of its token losses over its number of trained tokens, however it is cut into
//! micro-batches. A run is a function of its configuration and data: stopped at any moment and started again with the
//! same folder, it ends with the same bits (on a GPU, with deterministic kernels).

use std::path::Path;

use super::curve::{Best, CurveRow};
use super::guard::guard;
use super::loss::IGNORED;
use super::train_identity::{check_examples, identity};
use super::train_run::{Progress, Run};
use super::{
    Adapter, Decoder, Example, LanguageModel, LmError, LoraConfig, TrainConfig, TrainHooks, seeds,
};

/// How a run ended.
pub struct TrainReport {
    /// The best adapter by validation loss; without validation the last one. It is installed in the decoder.
    pub adapter: Adapter,
    pub curve: Vec<CurveRow>,
    pub best: Option<Best>,
    pub stopped_early: bool,
    /// The step after which an earlier process left off.
    pub resumed_from: Option<u64>,
}

/// Trains an adapter for `model`. `folder` holds the checkpoint and nothing else; keep it until the adapter is saved.
///
/// # Errors
/// [`LmError::Training`] for settings or data that cannot be trained, [`LmError::NonFinite`] when the loss is no number,
/// [`LmError::Cancelled`] when the hooks ask for it, [`LmError::Checkpoint`] when `folder` belongs to another run.
pub fn train(
    model: &mut LanguageModel,
    lora: &LoraConfig,
    train: &[Example],
    validation: &[Example],
    config: &TrainConfig,
    folder: &Path,
    hooks: &mut dyn TrainHooks,
) -> Result<TrainReport, LmError> {
    let context = usize::try_from(model.config.context).unwrap_or(usize::MAX);
    if let Some(long) = train
        .iter()
        .chain(validation)
        .find(|example| example.ids.len() > context)
    {
        return Err(LmError::Context {
            tokens: long.ids.len(),
            limit: context,
        });
    }
    if let Some(example) = train.first() {
        let last = example.labels.iter().rfind(|&&label| label != IGNORED);
        let token = model
            .tokenizer
            .decode_with_specials(last.map_or(&[], std::slice::from_ref))?;
        hooks.log(&format!(
            "the last trained token of the first example (`{}`) is {token:?}",
            example.id
        ));
    }
    train_decoder(
        &mut model.decoder,
        lora,
        train,
        validation,
        config,
        folder,
        hooks,
    )
}

/// [`train`] for a decoder alone.
pub fn train_decoder(
    decoder: &mut Decoder,
    lora: &LoraConfig,
    train: &[Example],
    validation: &[Example],
    config: &TrainConfig,
    folder: &Path,
    hooks: &mut dyn TrainHooks,
) -> Result<TrainReport, LmError> {
    let adapter = Adapter::new(
        decoder,
        lora,
        config.min_8bit_size,
        seeds::derive("lora", &[config.seed]),
    )?;
    guard(|| train_adapter(decoder, adapter, train, validation, config, folder, hooks))
}

/// [`train_decoder`] from given parameters.
pub(super) fn train_adapter(
    decoder: &mut Decoder,
    adapter: Adapter,
    train: &[Example],
    validation: &[Example],
    config: &TrainConfig,
    folder: &Path,
    hooks: &mut dyn TrainHooks,
) -> Result<TrainReport, LmError> {
    config.validate()?;
    check_examples(decoder, train, validation)?;
    let identity = identity(adapter.config(), train, validation, config);
    let mut run = Run::new(adapter, train, validation, config, decoder, hooks)?;
    let resumed_from = run.resume(folder, &identity)?;
    if let Some(step) = resumed_from {
        hooks.log(&format!("continuing after step {step} of {}", run.total()));
    }
    run.install(decoder, true)?;

    loop {
        let advanced = run.advance(decoder, hooks);
        let finished = matches!(advanced, Ok(Progress::Finished));
        let cancelled = matches!(advanced, Err(LmError::Cancelled));
        if finished || cancelled || run.done().is_multiple_of(config.checkpoint_every) {
            run.checkpoint().save(folder, &identity)?;
        }
        advanced?;
        if finished {
            break;
        }
    }
    run.finish(decoder, resumed_from, hooks)
}
