//! What the tests share.

mod judge;
mod project;
#[cfg(feature = "torch")]
mod tiny_model;

pub use judge::judge;
pub use project::Project;
