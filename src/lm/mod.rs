//! The language-model runtime: loads decoder models (llama and qwen3 families) and a BERT sentence encoder, and runs
//! them to judge, generate, embed and train.
//!
//! Owns everything that touches libtorch; `ops` call it through the re-exports below. It never reads the environment,
//! prints, opens a network connection, or knows about pipelines, tables or caches.

mod attention;
mod bert;
mod chat;
mod choose;
mod config;
mod decoder;
mod device;
mod error;
mod generate;
mod ggml;
mod gguf;
mod guard;
mod kv;
mod linear;
mod model;
mod rope;
mod safetensors_file;
mod sample;
mod tokenizer;
mod weights;

#[cfg(test)]
mod parity;

pub use attention::causal_varlen;
pub use bert::Embedder;
pub use chat::{ChatTemplate, Message};
pub use choose::{Choice, Chooser};
pub use config::{Family, ModelConfig, Rope, RopeScaling};
pub use decoder::{Batch, Decoder, Layer};
pub use device::{DeviceChoice, DtypeChoice, Placement};
pub use error::LmError;
pub use generate::{Completion, Finish, GenerateOptions, generate, plan_batches};
pub use guard::guard;
pub use linear::{Linear, LinearGroup};
pub use model::{LanguageModel, LoadOptions};
pub use rope::RotaryTable;
pub use sample::SampleOptions;
pub use tokenizer::Tokenizer;
pub use weights::{LinearWeight, Nf4Parts, Weights};
