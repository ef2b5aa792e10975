//! What the tests share.

mod project;

pub use project::Project;
