//! Runs a graph: schedules nodes, takes resource slots, commits results, says what happens as [`Event`]s.
//!
//! Called by the command line; never prints and knows no op by name.

pub mod cancel;
pub mod event;

pub use cancel::CancelToken;
pub use event::{Event, EventKind, Level, NodeStatus, Progress, RunState, Sink};
