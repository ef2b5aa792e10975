//! Nodes handed to other processes: a folder says what is to be done, and what was done is left there.
//!
//! ```text
//! cache/jobs/<fingerprint>/
//! ├── job.json                 the call: everything the other process has to know, and no secret
//! ├── inputs/<port>.parquet    tables it reads; files are read where they lie in the cache
//! ├── parts/<task>.jsonl       items of work, where it is cut into parts
//! ├── submission.json          what was started
//! ├── log/                     what the processes printed
//! └── tasks/<task>/
//!     ├── owner                the try that may write
//!     ├── result.json          how it ended; written last
//!     └── <try>/               events.jsonl, answers.jsonl, alive, cache/ of one process
//! ```
//!
//! The process that runs the pipeline writes all above `tasks/` and reads below; [`worker`] does the opposite. Neither opens
//! the other's database. A task may be started several times (a machine fails); a try that finds itself replaced ends.

mod events;
mod folder;
mod follow;
mod job;
mod local;
pub mod worker;

pub use folder::{JobFolder, Report, TaskFolder, last_lines, read_json};
pub use follow::{Running, Standing};
pub use job::{Job, Prepared, finish_node, finish_parts, prepare_node, prepare_parts};
pub use local::PerDevice;
