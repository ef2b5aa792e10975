//! Text to a checked spec: the pipeline, the stages it uses, their params.
//!
//! Called by the command line; knows no database, no network and no tensors. Problems are collected, never thrown one by one.

mod interface;
mod models;

pub use interface::{ArtifactKind, Columns, Interface, Param, ParamKind, Port};
pub use models::ModelSpec;
