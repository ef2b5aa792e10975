//! What the tests share.

mod project;
#[cfg(feature = "torch")]
mod tiny_model;

pub use project::Project;
