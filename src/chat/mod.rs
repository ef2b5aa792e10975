//! The medical chat: one loaded model answers as the base and as the tuned one, to a terminal or over HTTP.
//!
//! [`Engine`] owns the model on a thread of its own and continues all answers together; [`http`] is an
//! OpenAI-compatible server before it. Called by `cli`; knows nothing of runs, pipelines or caches, and never prints.

mod engine;
pub mod http;
mod job;
mod prompts;
mod traffic;

pub use engine::{Engine, Limits, Refused};
pub use job::{Answer, Decoding, Job, Piece};
pub use prompts::Prompts;
pub use traffic::Traffic;

/// Which model answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Voice {
    Base,
    Tuned,
}

impl Voice {
    pub const ALL: [Self; 2] = [Self::Base, Self::Tuned];

    /// As requests name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::Tuned => "tuned",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|voice| voice.name() == name)
    }
}

/// Shown beside every answer that people read.
pub const NOTICE: &str = "This is a demonstration of a language model and no medical advice. Ask a doctor about your health.";
