//! Text to a checked spec: the pipeline, the stages it uses, their params.
//!
//! Called by the command line and by `graph::compile`; knows no database, no network and no tensors. Problems are collected,
//! never thrown one by one; each points at the place in the text it is about.

mod builtin;
mod cache;
mod call;
mod check;
mod declare;
mod diagnostic;
mod environment;
mod executor;
mod fields;
mod interface;
mod job;
mod load;
mod locate;
mod matrix;
mod models;
mod overrides;
mod pipeline;
mod render;
mod scalar;
pub mod schema;
mod source;
mod stage;
pub mod suggest;
mod tracking;
mod yaml;

pub use builtin::file as stage_file;
pub use cache::{CacheSpec, WrongRemote, check_remote};
pub use call::{Call, InputRef};
pub use check::{Checker, describe};
pub use diagnostic::{Diagnostic, Diagnostics, Problems};
pub use environment::Environment;
pub use executor::{EXECUTORS, ExecutorSpec, SlurmSpec};
pub use interface::{ArtifactKind, Columns, Interface, Param, ParamKind, Port};
pub use job::JobSpec;
pub use load::{Request, load, project_root, read_text};
pub use matrix::{Axis, AxisValue, Matrix, Variant, short_names};
pub use models::{ModelSpec, has_credentials};
pub use pipeline::{Model, PipelineSpec};
pub use source::{Source, Sources, Span};
pub use stage::{StageFolder, StageOutput, StageSpec, display};
pub use tracking::TrackingSpec;
pub use yaml::{Entry, Kind, Yaml, to_object};
