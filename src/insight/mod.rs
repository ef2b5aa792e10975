//! What runs have to say once they are over: comparisons, reports, the way of a single row.
//!
//! Reads run records and, where tables are needed, the cache; called by the command line, prints nothing. Everything
//! that records alone can tell is told also while another process holds the cache; what is then missing is said.

pub mod chart;
pub mod compare;
pub mod prov;
pub mod report;
pub mod trace;

mod direction;
mod numbers;
mod page;
mod roles;
mod scores;
mod tables;

pub use numbers::Decimals;
pub use report::label as metric_label;
pub use tables::Tables;

/// Why something cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum InsightError {
    #[error(transparent)]
    Cache(#[from] crate::cache::CacheError),
    #[error("the run record cannot be read: {0}")]
    Record(#[from] std::io::Error),
    #[error("the page cannot be drawn: {0}")]
    Page(#[from] minijinja::Error),
}
