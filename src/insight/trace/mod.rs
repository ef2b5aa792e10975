//! Where one row went: from its source through groups, verdicts, filters and the split to the answers and their scores.
//!
//! Works on any pipeline whose rows keep their `id`: groups are told by a list of ids, verdicts by `choice` and
//! `probability`, scores by the op that compares them.

mod find;
mod walk;

use serde::Serialize;
use serde_json::{Map, Value};

pub use find::{Found, find_by_question, some_ids};
pub use walk::score_text;

use super::Tables;
use crate::cache::CacheError;

/// The schema of `flow trace --json`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Trace {
    pub run: String,
    pub id: String,
    /// The row as it came in.
    pub row: Map<String, Value>,
    pub steps: Vec<Step>,
    /// What became of it, in a few words.
    pub fate: String,
}

/// What happened to the row at a node.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Step {
    pub node: String,
    /// The name people know the output by.
    pub output: String,
    #[serde(flatten)]
    pub event: Happening,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Happening {
    /// It came in.
    Source,
    /// It competed with others.
    Group {
        group: String,
        members: Vec<Member>,
    },
    /// A judge chose, for the row or for its group.
    Verdict {
        choice: i64,
        probability: f64,
        truncated: bool,
        /// What the choice means here.
        meaning: String,
    },
    /// It is in what the stage gave.
    Kept,
    /// The split drew it into this part.
    Drawn {
        part: String,
    },
    Dropped {
        why: String,
    },
    /// The stage is not about this row.
    PassedBy {
        why: String,
    },
    Scored {
        reference: String,
        answers: Vec<Answer>,
        scores: Vec<Score>,
    },
}

/// An answer of a group, by its number for the judge.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Member {
    pub number: usize,
    pub id: String,
    pub answer: String,
    pub is_this: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Answer {
    /// `before tuning`, `after tuning`, or `prediction`.
    pub name: String,
    pub text: String,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Score {
    pub metric: String,
    pub before: Option<f64>,
    pub value: Option<f64>,
}

/// Follows the row with this id; `None` where no table of the run has it.
pub fn trace(tables: &Tables, id: &str) -> Result<Option<Trace>, CacheError> {
    walk::walk(tables, id)
}
