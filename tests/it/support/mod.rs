//! What the tests share.

mod judge;
mod medical;
mod project;
#[cfg(feature = "torch")]
mod tiny_model;
mod tracking_server;

pub use judge::judge;
pub use project::Project;
pub use tracking_server::{Fault, KEY, TrackingServer};
