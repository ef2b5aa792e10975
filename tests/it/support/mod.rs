//! What the tests share.

mod faulty;
pub mod json_schema;
mod judge;
mod medical;
mod project;
#[cfg(feature = "torch")]
pub mod server;
mod slurm;
#[cfg(feature = "torch")]
mod tiny_model;
mod tracking_server;
#[cfg(feature = "torch")]
pub mod tuned;

pub use faulty::faulty;
pub use judge::{judge, judge_telling};
pub use project::{Outcome, Project, text_of};
pub use slurm::{Cluster, cluster};
pub use tracking_server::{Fault, KEY, TrackingServer};
