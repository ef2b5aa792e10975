//! The language-model runtime: loads decoder models (llama and qwen3 families) and a BERT sentence encoder, and runs
//! them to judge, generate, embed and train.
//!
//! Owns everything that touches libtorch; `ops` call it through the re-exports below. It never reads the environment,
//! prints, opens a network connection, or knows about pipelines, tables or caches.

mod adamw;
mod adapter;
mod adapter_switch;
mod answer_tree;
mod attention;
mod backward;
mod bert;
mod chat;
mod chat_namespace;
mod checkpoint;
mod choose;
mod choose_batch;
mod config;
mod cpu_attention;
pub mod cuda;
mod curve;
mod decoder;
mod device;
mod dropout;
mod dtype;
mod dynamic_map;
mod embedder;
mod embedding_bench;
mod error;
mod examples;
mod flat_parameters;
mod fp8;
mod generate;
mod ggml;
mod gguf;
mod gguf_metadata;
mod gguf_writer;
mod gpu_training;
mod guard;
mod inference_bench;
mod int8;
mod kv;
mod linear;
mod logit_difference;
mod lora;
mod loss;
pub mod memory;
mod merged;
mod model;
mod model_folder;
mod nf4;
mod peft;
mod random_model;
mod rope;
mod safetensors_file;
mod sample;
mod schedule;
mod scorer;
mod seeds;
mod streams;
mod streams_plain;
mod tensor_file;
mod text_stream;
mod tokenizer;
mod train;
mod train_bench;
mod train_config;
mod train_identity;
mod train_memory;
mod train_plan;
mod train_run;
mod weights;

#[cfg(test)]
mod parity;

pub use adamw::{AdamW, AdamWConfig, Optimizer};
pub use adapter::Adapter;
pub use adapter_switch::AdapterSwitch;
pub use attention::causal_varlen;
pub use chat::{ChatTemplate, Message};
pub use choose::{Choice, Chooser, Question};
pub use config::{Family, ModelConfig, Rope, RopeScaling};
pub use curve::{Best, CurveRow, best};
pub use decoder::{Batch, Decoder, Layer};
pub use device::{DeviceChoice, DtypeChoice, Placement};
pub use dynamic_map::DynamicMap;
pub use embedder::Embedder;
pub use embedding_bench::{EmbeddingMeasurement, bench_embed};
pub use error::LmError;
pub use examples::{Conversation, Example, Prepared, prepare_examples};
pub use flat_parameters::FlatParameters;
pub use fp8::Fp8;
pub use generate::{Completion, Finish, GenerateOptions, generate};
pub use gguf_writer::{GgufFormat, write_gguf};
pub use guard::guard;
pub use inference_bench::{
    Agreement, GenerateBench, InferenceMeasurement, JudgeBench, bench_generate, bench_judge,
    judge_agreement,
};
pub use int8::Int8;
pub use linear::{Linear, Quantization};
pub use logit_difference::{LogitDifference, PromptLogits, prompt_logits};
pub use lora::LoraConfig;
pub use loss::IGNORED;
pub use merged::Merged;
pub use model::{LanguageModel, LoadOptions};
pub use model_folder::write_model_folder;
pub use nf4::Nf4;
pub use peft::{SavedAdapter, check_template, load_adapter, read_adapter, write_adapter};
pub use random_model::{RANDOM_MODELS, random_model};
pub use rope::RotaryTable;
pub use sample::SampleOptions;
pub use schedule::{LearningRate, Schedule};
pub use scorer::Scorer;
pub use streams::{Advance, NewStream, Streams};
pub use text_stream::TextStream;
pub use tokenizer::Tokenizer;
pub use train::{TrainReport, train, train_decoder};
pub use train_bench::{TrainBench, TrainMeasurement, bench_train};
pub use train_config::{Compute, Recompute, StepReport, TrainConfig, TrainHooks};
pub use weights::{LinearWeight, Nf4Parts, Weights};
