//! Runs a graph: schedules nodes, takes resource slots, commits results, says what happens as [`Event`]s.
//!
//! Called by the command line: [`plan`] first, then [`run`] with that plan. Never prints and knows no op by name.

mod cancel;
mod children;
mod error;
mod event;
mod execute;
mod executor;
mod outcome;
mod plan;
mod resolve;
mod run;
mod scheduler;
mod select;
mod sharing;
mod slots;

pub use cancel::CancelToken;
pub(crate) use children::end_leftovers;
pub use error::EngineError;
pub use event::{Event, EventKind, Level, NodeStatus, Progress, RunState, Sink, Sinks};
pub(crate) use execute::run_here;
pub use executor::{Call, Executor};
pub use outcome::{Failure, NodeOutcome, RunOutcome, SharedOutcome};
pub use plan::{NodePlan, NodeState, Plan, Reason, plan};
pub use resolve::{Resolve, ResolveError};
pub use run::{RunOptions, run};
pub use select::Selection;

#[cfg(test)]
mod tests;
