//! Kernels of our own for NVIDIA GPUs, and what is built from them alone.
//!
//! The sources in `kernels/` are compiled by NVRTC on the machine they run on, once per process and shape; they work on
//! the memory of libtorch's tensors and on its stream, so that they mix freely with libtorch's own operations. Kernels
//! compute in bf16 with f32 inside; other kinds and other devices take the generic path, which says the same in tensor
//! algebra.

mod adamw;
mod attention;
mod compiler;
mod context;
mod continuous;
mod cross_entropy;
mod decode_attention;
mod decode_step;
mod dequantise;
mod dropout;
mod e4m3;
mod engine;
mod engine_layer;
mod engine_linear;
mod few_rows;
mod fit;
mod forward;
mod gemm;
mod graph;
mod lora;
mod lora_down;
mod lora_grad;
mod lt;
mod module;
mod native;
mod norm;
mod profile;
mod rope;
mod rotate;
mod rounded;
mod sampler;
mod slot_decoder;
mod slots;
mod streams;
mod swiglu;
mod swiglu_grad;

#[cfg(test)]
mod tests;

pub use adamw::{AdamWKernels, EightBitMoment, StepGradient, StepNumbers};
pub use attention::{Attended, Sequences};
pub use context::capability;
pub(super) use continuous::{continues, run as continue_rows};
pub use cross_entropy::CrossEntropy;
pub use dequantise::Dequantise;
pub use dropout::dropout_mask;
pub use e4m3::multiplies_e4m3;
pub use engine::{EngineBatch, EngineOptions, TrainEngine, unsuitable};
pub use fit::{Fit, Footprint};
pub(super) use forward::FusedForward;
pub use gemm::Gemm;
pub use lora::{Lora, LoraPart, LoraShape, Mask};
pub use lora_down::{LoraDown, Rounded};
pub use lora_grad::GradientArena;
pub use module::{Argument, Kernel, Module, bf16_rows, gpu_name};
pub(super) use native::check as check_native;
pub use native::{
    Attention, MemoryPeak, cudnn_attention, deterministic, empty_cache, flash_attention,
    memory_peak, reset_memory_peak,
};
pub use norm::Norm;
pub use profile::{Part, PartTimes, Profile};
pub use rope::{HeadRotation, Heads};
pub use rounded::{GateUp, RoundedWeight, Rounding};
pub(super) use slot_decoder::takes as takes_slots;
pub(super) use streams::SlotStreams;
pub use swiglu::Swiglu;
pub use swiglu_grad::SwigluGrad;
