//! Scores of predictions against references, and how sure the mean of a score is.
//!
//! Called by the `score` op and by reports; pure functions over strings and numbers, no tables and no models.

mod bootstrap;
mod squad;

pub use bootstrap::{Interval, mean, mean_interval, paired_difference};
pub use squad::{exact_match, exact_match_best, f1, f1_best, normalize};
