//! The record of runs in `runs/<id>/`: plain files, readable while a run is on and after a crash.
//!
//! [`Recorder`] listens to the engine's events and writes; the rest reads. A record that cannot be written never fails
//! a run. Knows neither the cache nor the engine's inner workings.
//!
//! ```text
//! runs/20261124-001835-3fa2/
//! ├── run.json        who, when, how it ended (`flow schema run`)
//! ├── pipeline.yaml   the pipeline as it was
//! ├── graph.json      its nodes, how they are linked, and what goes into their fingerprints
//! ├── events.jsonl    everything that happened but progress; locked while the run lives
//! ├── metrics.jsonl   points of curves
//! ├── logs/<node>.log
//! └── report.html     written after a run that did something (see `insight`)
//! ```

mod curves;
mod environment;
mod find;
mod graph;
mod head;
mod id;
mod outputs;
mod recorder;
mod run;
mod split;
mod view;
mod why;

pub use curves::{Curve, Curves, curves};
pub use environment::Environment;
pub use find::{FindError, find, find_group, list};
pub use graph::{GraphNode, GraphText, Origin, RunGraph};
pub use head::{Head, VariantOf, head_schema};
pub use id::{is_taken, new_id};
pub use outputs::OutputError;
pub use recorder::{NewRun, Recorder, log_path};
pub use run::{NodeOutput, Run};
pub use split::Split;
pub use view::{NodeView, OutputView, RunView, show};
pub use why::{Why, why};
