//! Something wrong with what the user wrote: what, where, and what to do.

use super::source::{Sources, Span};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    pub message: String,
    /// `None` where there is no text to point at, such as a missing file.
    pub span: Option<Span>,
    /// Written at the caret: mostly a "did you mean".
    pub label: Option<String>,
    /// The next step.
    pub help: Option<String>,
}

/// Problems found so far.
pub type Problems = Vec<Diagnostic>;

/// All problems of a request, with the texts they point into.
#[derive(Debug, Clone)]
pub struct Diagnostics {
    pub sources: Sources,
    pub problems: Problems,
}

impl Diagnostic {
    pub fn new(span: Span, message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            span: Some(span),
            label: None,
            help: None,
        }
    }

    pub fn without_place(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            span: None,
            label: None,
            help: None,
        }
    }

    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = Some(label.into());
        self
    }

    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Adds "did you mean" at the caret where there is a guess.
    pub fn guess(mut self, guess: Option<&str>) -> Self {
        if let Some(guess) = guess {
            self.label = Some(format!("did you mean `{guess}`?"));
        }
        self
    }
}

impl Diagnostics {
    pub fn new(sources: Sources, mut problems: Problems) -> Self {
        // A stage used many times has its own faults found many times.
        let mut seen = std::collections::HashSet::new();
        problems.retain(|problem| seen.insert((problem.span, problem.message.clone())));
        // In the order of the text, so that the reader goes through a file once.
        problems.sort_by_key(|problem| problem.span.map(|span| (span.source, span.start)));
        Self { sources, problems }
    }

    /// One problem that points nowhere.
    pub fn single(problem: Diagnostic) -> Self {
        Self {
            sources: Sources::default(),
            problems: vec![problem],
        }
    }
}
