//! Fingerprint to artifacts, crash-safe: look up, else run and commit. Tables live in DuckDB, files in `objects/`.
//!
//! Called by the engine and by ops through their context; never prints and knows no op.

mod archive;
mod artifact;
mod carried;
mod catalog;
mod committer;
mod database;
mod error;
mod external;
mod index;
mod layout;
mod ledger;
mod lock;
mod maintenance;
mod memory;
mod objects;
mod portable;
mod remote;
mod row_digest;
mod snapshot;
mod sql;
mod store;
mod tables;
mod verdicts;
mod workspace;

pub use archive::archive_digest;
pub(crate) use archive::expands_too_far;
pub use artifact::Artifact;
pub use catalog::named_views;
pub use error::CacheError;
pub use external::{ExternalError, StatIndex};
pub use index::Entry;
pub(crate) use layout::FAILED_JOB;
pub use ledger::Recovered;
pub use lock::{Holder, RunLock};
pub use maintenance::{Collected, Damage, Size, Verified};
pub use remote::{Counts, Remote, RemoteError, Sent, SharedSize};
pub use sql::quote;
pub(crate) use sql::{bind, file_literal, is_ordered};
pub use store::{Cache, Lookup, NewEntry};
pub use verdicts::Verdict;

#[cfg(test)]
mod tests;
