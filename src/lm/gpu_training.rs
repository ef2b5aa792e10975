//! A training run's use of the GPU engine: whether it can be used, how passes are cut to the memory, the optimizer step.

use tch::{Device, Kind, Tensor};

use super::backward::TrainBatch;
use super::cuda::{
    AdamWKernels, EngineOptions, Fit, StepGradient, TrainEngine, capability, empty_cache,
    memory_peak, multiplies_e4m3, unsuitable,
};
use super::{
    AdamW, Adapter, Compute, Decoder, FlatParameters, LmError, Recompute, TrainConfig, TrainHooks,
    memory,
};

/// The part of the memory that is planned with; the rest is for what the plan does not count.
const PLANNED: f64 = 0.94;

pub(super) struct GpuTraining {
    engine: TrainEngine,
    optimizer: AdamWKernels,
    recompute: Recompute,
    /// Bytes that passes may take.
    budget: u64,
    /// Tokens of the largest micro-batch and of the longest sequence.
    batch: u64,
    longest: u64,
    fit: Fit,
}

impl GpuTraining {
    /// None on a CPU, and where the engine cannot compute this model and adapter, which is logged once.
    ///
    /// # Errors
    /// [`LmError::Fp8`] where e4m3 products are asked for and cannot be had; what libtorch refuses, out of memory
    /// included.
    pub(super) fn start(
        decoder: &mut Decoder,
        adapter: &Adapter,
        config: &TrainConfig,
        hooks: &mut dyn TrainHooks,
    ) -> Result<Option<Self>, LmError> {
        let device = decoder.placement().device;
        let fp8 = config.compute == Compute::Fp8;
        if fp8 {
            check_fp8(decoder)?;
        }
        if !device.is_cuda() {
            return Ok(None);
        }
        let generic = |reason: String| format!("training without the fused kernels: {reason}");
        if let Some(reason) = unsuitable(decoder, adapter, fp8) {
            if fp8 {
                return Err(LmError::Fp8(reason));
            }
            hooks.log(&generic(reason));
            return Ok(None);
        }
        let options = EngineOptions {
            deterministic: config.deterministic,
            fp8,
            budget: budget(device, config.memory_limit),
        };
        let engine = TrainEngine::new(decoder, adapter, options);
        let engine = engine.and_then(|engine| Ok((engine, AdamWKernels::new(device)?)));
        let (engine, optimizer) = match engine {
            Err(LmError::Kernel { name, reason }) if fp8 => {
                return Err(LmError::Fp8(format!("`{name}`: {reason}")));
            }
            Err(LmError::Kernel { name, reason }) => {
                hooks.log(&generic(format!("`{name}`: {reason}")));
                return Ok(None);
            }
            made => made?,
        };
        let budget = budget(device, config.memory_limit);
        Ok(Some(Self {
            fit: engine.footprint().fit(1, 1, budget, config.recompute),
            engine,
            optimizer,
            recompute: config.recompute,
            budget,
            batch: 1,
            longest: 1,
        }))
    }

    /// Cuts micro-batches of at most `batch` tokens, made of sequences of at most `longest`, to the memory.
    pub(super) fn fit(self, batch: u64, longest: u64) -> Self {
        let footprint = self.engine.footprint();
        Self {
            fit: footprint.fit(batch, longest, self.budget, self.recompute),
            batch,
            longest,
            ..self
        }
    }

    pub(super) fn engine(&self) -> &TrainEngine {
        &self.engine
    }

    pub(super) fn engine_mut(&mut self) -> &mut TrainEngine {
        &mut self.engine
    }

    /// Layers that keep what their backward pass needs.
    pub(super) fn kept(&self) -> usize {
        self.fit.kept
    }

    /// The most tokens of a pass.
    pub(super) fn max_tokens(&self) -> u64 {
        self.fit.max_tokens
    }

    /// Plans with less memory after it ran out, until the plan changes; None where there is nothing left to give up.
    pub(super) fn relieve(&mut self) -> Option<u64> {
        // Blocks of the lengths that did not fit are of no use to the shorter ones.
        empty_cache();
        let (before, footprint) = (self.fit, self.engine.footprint());
        while self.fit == before && self.budget > 0 {
            self.budget = self.budget / 5 * 4;
            self.fit = footprint.fit(self.batch, self.longest, self.budget, self.recompute);
        }
        (self.fit != before).then_some(self.fit.max_tokens)
    }

    /// See [`TrainEngine::accumulate`].
    pub(super) fn accumulate(
        &self,
        decoder: &Decoder,
        adapter: &Adapter,
        batch: &TrainBatch,
        seed: u64,
    ) -> Result<Tensor, LmError> {
        tch::no_grad(|| {
            let batch = batch.for_engine(decoder);
            self.engine
                .accumulate(decoder, adapter, &batch, seed, &self.fit)
        })
    }

    /// The sum of the token losses, without gradients.
    pub(super) fn evaluate(
        &self,
        decoder: &Decoder,
        adapter: &Adapter,
        batch: &TrainBatch,
    ) -> Result<f64, LmError> {
        tch::no_grad(|| {
            let batch = batch.for_engine(decoder);
            let head_bytes = self.fit.head_bytes;
            let loss = self.engine.evaluate(decoder, adapter, &batch, head_bytes)?;
            Ok(loss.double_value(&[]))
        })
    }

    /// Moves the parameters along the summed gradient of `tokens` tokens and returns the norm of its mean. Where that, or
    /// one of the `losses` (f64 [] each, on the device), is no finite number, the parameters stay as they are.
    pub(super) fn update(
        &self,
        optimizer: &mut AdamW,
        parameters: &FlatParameters,
        losses: &[&Tensor],
        tokens: u64,
        max_norm: f64,
        learning_rate: f64,
    ) -> Result<f64, LmError> {
        let sum = parameters.gradients();
        // Zero times a loss is zero, or no number where the loss is none.
        let doubt = Tensor::f_stack(losses, 0)?.f_sum(Kind::Float)? * 0.0;
        let norm = sum.f_norm()? + doubt;
        let gradient = StepGradient {
            sum: &sum,
            norm: &norm,
            tokens,
            max_norm,
        };
        let values = parameters.values();
        self.engine.timed(super::cuda::Part::Optimizer, || {
            optimizer.step_on_gpu(&self.optimizer, &values, &gradient, learning_rate)
        })?;
        Ok(norm.double_value(&[]) / tokens as f64)
    }
}

/// Whether the device multiplies e4m3 at all.
fn check_fp8(decoder: &Decoder) -> Result<(), LmError> {
    let placement = decoder.placement();
    if multiplies_e4m3(placement) {
        return Ok(());
    }
    Err(LmError::Fp8(match placement.device {
        device if !device.is_cuda() => "the model is on the CPU".to_owned(),
        _ if placement.kind != Kind::BFloat16 => {
            format!("it goes with bf16, not with {:?}", placement.kind)
        }
        device => match capability(device) {
            Some((major, minor)) => format!("this GPU has compute capability {major}.{minor}"),
            None => "the GPU does not say what it can".to_owned(),
        },
    }))
}

/// Bytes that tensors may take beyond those there are: what the device has free and what libtorch's allocator holds
/// without use, within the limit.
fn budget(device: Device, limit: Option<u64>) -> u64 {
    let held = memory_peak(device).unwrap_or_default();
    let free = memory::available(device).unwrap_or(0) + held.cached();
    let left = limit.map_or(u64::MAX, |limit| limit.saturating_sub(held.now));
    (free.min(left) as f64 * PLANNED) as u64
}
