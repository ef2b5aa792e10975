//! What a training run is made of, and who listens to it.

use serde::{Deserialize, Serialize};

use super::{LmError, Optimizer, Schedule};

/// When layers are computed a second time in the backward pass instead of keeping what it needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Recompute {
    /// As many layers as memory asks for. The result does not depend on it.
    #[default]
    Auto,
    Full,
    None,
}

/// How the frozen linear layers are multiplied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Compute {
    /// As all else.
    #[default]
    Auto,
    /// In 8-bit floating point (e4m3, arXiv:2209.05433), forward and backward, with a scale for each row of activations,
    /// gradients and weights; `o_proj` and `down_proj` only backward. The adapter's products stay in bf16. On GPUs that
    /// multiply e4m3 only.
    Fp8,
}

/// Settings of [`super::train`]. The defaults are those of the pipeline that flow was made for.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// Sequences of a micro-batch.
    pub batch_size: usize,
    /// Micro-batches of an optimizer step.
    pub gradient_accumulation: usize,
    pub epochs: u64,
    /// Steps to take, whatever the epochs.
    pub max_steps: Option<usize>,
    /// The peak.
    pub learning_rate: f64,
    pub schedule: Schedule,
    /// Part of the steps in which the learning rate rises.
    pub warmup_ratio: f64,
    pub weight_decay: f64,
    /// Longer gradients are scaled down to this norm.
    pub max_grad_norm: f64,
    pub optimizer: Optimizer,
    /// Tensors of fewer elements keep 32-bit moments under `adamw_8bit`.
    pub min_8bit_size: i64,
    /// Tokens of an example, and of a block of packed examples.
    pub max_length: usize,
    /// Steps between evaluations; one always follows the last step.
    pub eval_every: u64,
    /// Evaluations without improvement after which training stops; 0 never stops it.
    pub early_stopping_patience: u64,
    pub recompute: Recompute,
    pub compute: Compute,
    /// Bytes that a GPU's tensors may take, weights included; all that is free where none is given. The result does not
    /// depend on it beyond which elements dropout drops.
    pub memory_limit: Option<u64>,
    /// Use only kernels whose results have the same bits every time, on a GPU too.
    pub deterministic: bool,
    /// A sequence of a batch is a block of several examples, which never attend to each other.
    pub packing: bool,
    /// Draw a new order in each epoch.
    pub shuffle: bool,
    pub seed: u64,
    /// Steps between checkpoints.
    pub checkpoint_every: u64,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            batch_size: 32,
            gradient_accumulation: 8,
            epochs: 2,
            max_steps: None,
            learning_rate: 5e-5,
            schedule: Schedule::Cosine,
            warmup_ratio: 0.03,
            weight_decay: 0.01,
            max_grad_norm: 1.0,
            optimizer: Optimizer::AdamW8bit,
            min_8bit_size: 4096,
            max_length: 1024,
            eval_every: 32,
            early_stopping_patience: 2,
            recompute: Recompute::Auto,
            compute: Compute::Auto,
            memory_limit: None,
            deterministic: false,
            packing: false,
            shuffle: true,
            seed: 3407,
            checkpoint_every: 4,
        }
    }
}

impl TrainConfig {
    /// # Errors
    /// [`LmError::Training`] naming the first setting that cannot be.
    pub fn validate(&self) -> Result<(), LmError> {
        let positive = |number: f64| number.is_finite() && number > 0.0;
        let wrong = match self {
            Self { batch_size: 0, .. } => "batch_size: 0",
            Self {
                gradient_accumulation: 0,
                ..
            } => "gradient_accumulation: 0",
            Self {
                epochs: 0,
                max_steps: None,
                ..
            } => "epochs: 0",
            Self {
                max_steps: Some(0), ..
            } => "max_steps: 0",
            Self { eval_every: 0, .. } => "eval_every: 0",
            Self {
                checkpoint_every: 0,
                ..
            } => "checkpoint_every: 0",
            Self {
                max_length: 0 | 1, ..
            } => "max_length below 2",
            _ if !positive(self.learning_rate) => "learning_rate not above 0",
            _ if !positive(self.max_grad_norm) => "max_grad_norm not above 0",
            _ if !(0.0..=1.0).contains(&self.warmup_ratio) => "warmup_ratio outside 0 to 1",
            _ if !(self.weight_decay.is_finite() && self.weight_decay >= 0.0) => {
                "weight_decay below 0"
            }
            _ => return Ok(()),
        };
        Err(LmError::Training(wrong.to_owned()))
    }
}

/// One finished optimizer step.
#[derive(Clone, Debug, PartialEq)]
pub struct StepReport {
    /// Counted from 1.
    pub step: u64,
    pub total: u64,
    pub loss: f64,
    pub learning_rate: f64,
    pub grad_norm: f64,
    /// Trained tokens.
    pub tokens: u64,
    /// All tokens that went through the model, prompts included.
    pub processed: u64,
    /// Of all tokens.
    pub tokens_per_second: f64,
}

/// Listens to a run and may stop it.
pub trait TrainHooks {
    fn step(&mut self, _report: &StepReport) {}
    /// The mean loss of a validation token after `step`.
    fn eval(&mut self, _step: u64, _loss: f64) {}
    fn log(&mut self, _line: &str) {}
    /// Asked often. True saves a checkpoint and ends the run with [`LmError::Cancelled`].
    fn cancelled(&mut self) -> bool {
        false
    }
}
