//! What the tests share.

mod judge;
mod project;

pub use judge::judge;
pub use project::Project;
