//! A training run between two steps, and how it takes the next.

use std::path::Path;
use std::time::Instant;

use tch::Tensor;

use super::backward::{TrainBatch, accumulate_gradient, evaluate};
use super::checkpoint::Checkpoint;
use super::curve::{CurveRow, best};
use super::gpu_training::GpuTraining;
use super::guard::guard;
use super::train::TrainReport;
use super::train_memory::TrainMemory;
use super::train_plan::{StepPlan, TrainPlan, split};
use super::{
    AdamW, AdamWConfig, Adapter, Decoder, Example, LearningRate, LmError, Optimizer, StepReport,
    TrainConfig, TrainHooks, seeds,
};

/// Tokens of one forward pass of an evaluation on a GPU.
const GPU_EVAL_TOKENS: u64 = 32_768;

/// The loss of one pass.
struct PartLoss {
    /// Indices of examples.
    part: Vec<usize>,
    /// Trained tokens.
    tokens: u64,
    /// f64 []: the sum of their losses, where it was computed.
    sum: Tensor,
}

/// What [`Run::advance`] did.
pub(super) enum Progress {
    Stepped,
    Finished,
}

/// A run between two steps.
pub(super) struct Run<'a> {
    config: &'a TrainConfig,
    train: &'a [Example],
    validation: &'a [Example],
    plan: TrainPlan,
    rate: LearningRate,
    adapter: Adapter,
    optimizer: AdamW,
    best_values: Option<Tensor>,
    /// One row per step done.
    curve: Vec<CurveRow>,
    memory: TrainMemory,
    /// Computes the gradient where the model runs on a GPU that has kernels for it.
    gpu: Option<GpuTraining>,
}

impl<'a> Run<'a> {
    pub(super) fn new(
        adapter: Adapter,
        train: &'a [Example],
        validation: &'a [Example],
        config: &'a TrainConfig,
        decoder: &mut Decoder,
        hooks: &mut dyn TrainHooks,
    ) -> Result<Self, LmError> {
        let device = decoder.placement().device;
        let plan = TrainPlan::new(train, config);
        let gpu = GpuTraining::start(decoder, &adapter, config, hooks)?;
        let total_steps = plan.total();
        let parameters = adapter.parameters();
        let eight_bit = match config.optimizer {
            Optimizer::AdamW => 0,
            Optimizer::AdamW8bit => parameters.large(),
        };
        let adamw = AdamWConfig {
            weight_decay: config.weight_decay,
            ..AdamWConfig::default()
        };
        let len = parameters.values().size()[0];
        let batches = plan.micro_batches();
        let most = batches.map(|batch| tokens_of(batch, train)).max();
        let longest = train.iter().map(|example| example.ids.len() as u64).max();
        let gpu = gpu.map(|gpu| gpu.fit(most.unwrap_or(1), longest.unwrap_or(1)));
        Ok(Self {
            config,
            train,
            validation,
            rate: LearningRate {
                peak: config.learning_rate,
                schedule: config.schedule,
                warmup_steps: (config.warmup_ratio * total_steps as f64).ceil() as u64,
                total_steps,
            },
            plan,
            adapter,
            optimizer: AdamW::new(adamw, len, eight_bit, device),
            best_values: None,
            curve: Vec::new(),
            memory: TrainMemory::new(config.recompute, decoder.placement(), gpu.as_ref()),
            gpu,
        })
    }

    /// Makes the model compute with the present adapter. `training` switches dropout on.
    pub(super) fn install(&self, decoder: &mut Decoder, training: bool) -> Result<(), LmError> {
        match &self.gpu {
            // The engine takes dropout with each pass.
            Some(gpu) => gpu.engine().install(&self.adapter),
            None => self.adapter.install(decoder, training),
        }
    }

    pub(super) fn adapter(&self) -> &Adapter {
        &self.adapter
    }

    pub(super) fn gpu_mut(&mut self) -> Option<&mut GpuTraining> {
        self.gpu.as_mut()
    }

    /// The most tokens of one forward pass.
    pub(super) fn max_tokens(&self) -> u64 {
        self.memory.max_tokens()
    }

    /// Steps of the whole run.
    pub(super) fn total(&self) -> u64 {
        self.plan.total()
    }

    /// Steps done.
    pub(super) fn done(&self) -> u64 {
        self.curve.len() as u64
    }

    /// Takes over the checkpoint in `folder`, if there is one, and says after which step it was made.
    pub(super) fn resume(&mut self, folder: &Path, identity: &str) -> Result<Option<u64>, LmError> {
        let Some(checkpoint) = Checkpoint::load(folder, identity)? else {
            return Ok(None);
        };
        let parameters = self.adapter.parameters();
        parameters.values().f_copy_(&checkpoint.values)?;
        let device = parameters.values().device();
        self.best_values = checkpoint.best.map(|best| best.to_device(device));
        self.optimizer
            .restore(checkpoint.curve.len() as u64, |name| {
                let saved = checkpoint.optimizer.iter().find(|(saved, _)| saved == name);
                let (_, tensor) = saved.ok_or_else(|| LmError::Checkpoint {
                    path: folder.to_owned(),
                    reason: format!("it has no `optimizer.{name}`"),
                })?;
                Ok(tensor.shallow_clone())
            })?;
        self.curve = checkpoint.curve;
        self.memory.restore(checkpoint.max_tokens);
        Ok(Some(self.done()))
    }

    pub(super) fn checkpoint(&self) -> Checkpoint {
        let state = self.optimizer.state().into_iter();
        Checkpoint {
            values: self.adapter.parameters().values(),
            best: self.best_values.as_ref().map(Tensor::shallow_clone),
            optimizer: state
                .map(|(name, tensor)| (name.to_owned(), tensor))
                .collect(),
            curve: self.curve.clone(),
            max_tokens: self.memory.max_tokens(),
        }
    }

    /// Does what is due: the evaluation of the last step, and the next step unless the run ends here. Stopped in the
    /// middle of either it is as if that had not begun.
    pub(super) fn advance(
        &mut self,
        decoder: &mut Decoder,
        hooks: &mut dyn TrainHooks,
    ) -> Result<Progress, LmError> {
        if self.evaluation_due() {
            self.evaluate(decoder, hooks)?;
        }
        if self.done() == self.plan.total() || self.out_of_patience() {
            return Ok(Progress::Finished);
        }
        self.step(decoder, hooks)?;
        Ok(Progress::Stepped)
    }

    fn evaluation_due(&self) -> bool {
        let step = self.done();
        let due = step.is_multiple_of(self.config.eval_every) || step == self.plan.total();
        let last = self.curve.last();
        due && !self.validation.is_empty() && last.is_some_and(|row| row.eval_loss.is_none())
    }

    fn out_of_patience(&self) -> bool {
        let patience = self.config.early_stopping_patience;
        patience > 0 && best(&self.curve).is_some_and(|best| best.since >= patience)
    }

    fn evaluate(
        &mut self,
        decoder: &mut Decoder,
        hooks: &mut dyn TrainHooks,
    ) -> Result<(), LmError> {
        self.install(decoder, false)?;
        let loss = self.validation_loss(decoder, hooks);
        self.install(decoder, true)?;
        let (loss, step) = (loss?, self.done());
        if let Some(row) = self.curve.last_mut() {
            row.eval_loss = Some(loss);
        }
        if best(&self.curve).is_some_and(|best| best.step == step) {
            self.best_values = Some(self.adapter.parameters().values().copy());
        }
        hooks.eval(step, loss);
        Ok(())
    }

    /// The mean loss of a trained token over the validation examples.
    fn validation_loss(
        &self,
        decoder: &Decoder,
        hooks: &mut dyn TrainHooks,
    ) -> Result<f64, LmError> {
        let all: Vec<usize> = (0..self.validation.len()).collect();
        let limit = self.memory.max_tokens().min(GPU_EVAL_TOKENS);
        let (mut sum, mut tokens) = (0.0, 0);
        for part in split(&all, self.validation, limit) {
            if hooks.cancelled() {
                return Err(LmError::Cancelled);
            }
            let examples: Vec<&Example> =
                part.iter().map(|&index| &self.validation[index]).collect();
            let batch = TrainBatch::pack(&examples, decoder);
            let loss = match &self.gpu {
                Some(gpu) => gpu.evaluate(decoder, &self.adapter, &batch)?,
                None => evaluate(decoder, &batch)?,
            };
            if !loss.is_finite() {
                return Err(self.non_finite("validation loss", loss, &examples));
            }
            sum += loss;
            tokens += batch.trained();
        }
        Ok(sum / tokens as f64)
    }

    fn step(&mut self, decoder: &mut Decoder, hooks: &mut dyn TrainHooks) -> Result<(), LmError> {
        let step = self.done() + 1;
        let start = Instant::now();
        let losses = loop {
            match self.gradient(step, decoder, hooks) {
                Err(error) if error.is_out_of_memory() && self.relieve(step) => {
                    hooks.log(&format!(
                        "step {step}: {error}; continuing with less at a time"
                    ));
                }
                outcome => break outcome?,
            }
        };
        let learning_rate = self.rate.at(step);
        let grad_norm = self.update(step, &losses, learning_rate)?;
        let (loss, trained) = self.check_losses(step, &losses, grad_norm)?;
        self.install(decoder, true)?;

        let plan = self.plan.step(step);
        let processed: usize = examples(plan, self.train)
            .map(|example| example.ids.len())
            .sum();
        self.curve.push(CurveRow {
            step,
            epoch: plan.epoch,
            loss: loss / trained as f64,
            learning_rate,
            grad_norm,
            tokens: trained,
            eval_loss: None,
        });
        hooks.step(&StepReport {
            step,
            total: self.plan.total(),
            loss: loss / trained as f64,
            learning_rate,
            grad_norm,
            tokens: trained,
            processed: processed as u64,
            tokens_per_second: processed as f64 / start.elapsed().as_secs_f64(),
        });
        Ok(())
    }

    /// Moves the parameters along the gradient that [`Run::gradient`] left; returns its norm.
    fn update(
        &mut self,
        step: u64,
        losses: &[PartLoss],
        learning_rate: f64,
    ) -> Result<f64, LmError> {
        let tokens: u64 = losses.iter().map(|loss| loss.tokens).sum();
        let parameters = self.adapter.parameters();
        let mut gradients = parameters.gradients();
        let max_norm = self.config.max_grad_norm;
        if let Some(gpu) = &self.gpu {
            let optimizer = &mut self.optimizer;
            let losses: Vec<&Tensor> = losses.iter().map(|loss| &loss.sum).collect();
            return gpu.update(
                optimizer,
                parameters,
                &losses,
                tokens,
                max_norm,
                learning_rate,
            );
        }
        let _ = gradients.f_div_scalar_(tokens as f64)?;
        let grad_norm = gradients.f_norm()?.double_value(&[]);
        // Before the parameters are touched.
        self.check_losses(step, losses, grad_norm)?;
        let clip = max_norm / (grad_norm + 1e-6);
        if clip < 1.0 {
            let _ = gradients.f_mul_scalar_(clip)?;
        }
        self.optimizer
            .step(&mut parameters.values(), &gradients, learning_rate)?;
        Ok(grad_norm)
    }

    /// The sum of the losses and the trained tokens of a step.
    ///
    /// # Errors
    /// [`LmError::NonFinite`] with the rows of the first loss, or of the norm, that is no number.
    fn check_losses(
        &self,
        step: u64,
        losses: &[PartLoss],
        grad_norm: f64,
    ) -> Result<(f64, u64), LmError> {
        let sums: Vec<&Tensor> = losses.iter().map(|loss| &loss.sum).collect();
        // One look at the device for all of them.
        let sums = Vec::<f64>::try_from(Tensor::f_stack(&sums, 0)?)?;
        for (sum, loss) in sums.iter().zip(losses) {
            if !sum.is_finite() {
                let rows: Vec<&Example> = loss.part.iter().map(|&row| &self.train[row]).collect();
                return Err(self.non_finite("loss", *sum, &rows));
            }
        }
        if !grad_norm.is_finite() {
            let rows: Vec<&Example> = examples(self.plan.step(step), self.train).collect();
            return Err(self.non_finite("norm of the gradient", grad_norm, &rows));
        }
        Ok((
            sums.iter().sum(),
            losses.iter().map(|loss| loss.tokens).sum(),
        ))
    }

    /// Leaves the gradient of the summed token losses in the adapter; returns the sums of its parts.
    fn gradient(
        &self,
        step: u64,
        decoder: &Decoder,
        hooks: &mut dyn TrainHooks,
    ) -> Result<Vec<PartLoss>, LmError> {
        let _ = self.adapter.parameters().gradients().f_zero_()?;
        let mut losses = Vec::new();
        let micro_batches = self.plan.step(step).micro_batches.iter();
        let parts =
            micro_batches.flat_map(|batch| split(batch, self.train, self.memory.max_tokens()));
        for (index, part) in parts.enumerate() {
            if hooks.cancelled() {
                return Err(LmError::Cancelled);
            }
            let examples: Vec<&Example> = part.iter().map(|&index| &self.train[index]).collect();
            let seed = seeds::derive("micro-batch", &[self.config.seed, step, index as u64]);
            let (sum, tokens) = guard(|| {
                let batch = TrainBatch::pack(&examples, decoder);
                let sum = match &self.gpu {
                    Some(gpu) => gpu.accumulate(decoder, &self.adapter, &batch, seed)?,
                    None => {
                        let kept = self.memory.kept_layers(decoder, &batch);
                        accumulate_gradient(decoder, &self.adapter, &batch, seed, kept)?.into()
                    }
                };
                Ok((sum, batch.trained() as u64))
            })?;
            losses.push(PartLoss { part, tokens, sum });
        }
        Ok(losses)
    }

    /// Asks for less memory; false where nothing is left to give up.
    fn relieve(&mut self, step: u64) -> bool {
        let tokens = |part: Vec<usize>| (part.len() > 1).then(|| tokens_of(&part, self.train));
        let micro_batches = self.plan.step(step).micro_batches.iter();
        let parts =
            micro_batches.flat_map(|batch| split(batch, self.train, self.memory.max_tokens()));
        let longest = parts.filter_map(tokens).max();
        self.memory.relieve(self.gpu.as_mut(), longest)
    }

    fn non_finite(&self, what: &'static str, value: f64, rows: &[&Example]) -> LmError {
        LmError::NonFinite {
            step: self.done() + u64::from(what != "validation loss"),
            what,
            value,
            rows: rows.iter().map(|example| example.id.clone()).collect(),
        }
    }

    pub(super) fn finish(
        self,
        decoder: &mut Decoder,
        resumed_from: Option<u64>,
        hooks: &mut dyn TrainHooks,
    ) -> Result<TrainReport, LmError> {
        let best = best(&self.curve);
        match (&self.best_values, best) {
            (Some(values), Some(best)) => {
                self.adapter.parameters().values().f_copy_(values)?;
                hooks.log(&format!(
                    "kept the adapter of step {} (validation loss {:.4})",
                    best.step, best.loss
                ));
            }
            _ => hooks.log("no validation examples: kept the adapter of the last step"),
        }
        // The decoder computes by itself again.
        self.adapter.install(decoder, false)?;
        Ok(TrainReport {
            stopped_early: self.done() < self.plan.total(),
            adapter: self.adapter,
            curve: self.curve,
            best,
            resumed_from,
        })
    }
}

fn tokens_of(batch: &[usize], all: &[Example]) -> u64 {
    batch.iter().map(|&index| all[index].ids.len() as u64).sum()
}

fn examples<'a>(plan: &StepPlan, all: &'a [Example]) -> impl Iterator<Item = &'a Example> {
    plan.micro_batches
        .concat()
        .into_iter()
        .map(|index| &all[index])
}
