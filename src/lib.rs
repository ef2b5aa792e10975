//! flow: a declarative DAG workflow runner for language-model fine-tuning.
//!
//! START HERE. The life of a run, in reading order:
//! 1. [`cli`] parses the command line; `config` turns YAML into a checked spec, with every problem at once;
//! 2. [`graph`] compiles the spec into nodes (single op calls) and knows what a fingerprint is made of;
//! 3. [`engine`] walks the graph: fingerprint, look up in the [`cache`], else run the [`ops`] and commit; it emits events;
//! 4. [`runs`], [`tracking`] and [`ui`] listen to the events: the record on disk, the tracking server, the terminal;
//! 5. [`insight`] looks back at records and results: reports, comparisons, the way of one row.
//!
//! What a run has trained answers in `chat` (feature `torch`), which commands start.
//!
//! Ops of language models call `lm` (feature `torch`), the only module that names `tch`.
//! Dependencies point one way: `cli → config → graph → engine → cache`; `ops → cache, lm, metrics`;
//! `insight → runs, cache, metrics`.

mod atomic;
pub mod cache;
pub mod cli;
pub mod config;
pub mod digest;
pub mod download;
pub mod engine;
pub mod failpoint;
#[cfg(test)]
mod fuzz;
pub mod graph;
pub mod insight;
pub mod jobs;
pub mod metrics;
pub mod models;
pub mod ops;
pub mod runs;
pub mod slurm;
pub mod tracking;
pub mod ui;

#[cfg(feature = "torch")]
pub mod chat;
#[cfg(feature = "torch")]
pub mod lm;
