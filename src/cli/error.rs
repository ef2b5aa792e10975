//! Why a command did not do what was asked, and the exit codes.

use std::process::ExitCode;

use crate::cache::CacheError;
use crate::config::Diagnostics;
use crate::engine::EngineError;

/// How the process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    Ok,
    /// A node failed, or something outside did.
    Failed,
    /// The request was wrong: nothing was started.
    Wrong,
    /// `plan --exit-code`: there is work to do.
    Pending,
    /// Ctrl-C.
    Interrupted,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(match exit {
            Exit::Ok => 0,
            Exit::Failed => 1,
            Exit::Wrong => 2,
            Exit::Pending => 3,
            Exit::Interrupted => 130,
        })
    }
}

#[derive(Debug)]
pub enum CliError {
    /// Problems in what the user wrote.
    Diagnostics(Box<Diagnostics>),
    Message {
        message: String,
        help: Option<String>,
        exit: Exit,
    },
    /// Whoever read standard output went away; not an error.
    Closed,
}

impl CliError {
    /// The request cannot be answered as it is.
    pub fn wrong(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self::Message {
            message: message.into(),
            help: Some(help.into()),
            exit: Exit::Wrong,
        }
    }

    /// Something failed that is not the request's fault.
    pub fn failed(message: impl Into<String>, help: Option<String>) -> Self {
        Self::Message {
            message: message.into(),
            help,
            exit: Exit::Failed,
        }
    }

    pub fn exit(&self) -> Exit {
        match self {
            Self::Diagnostics(_) => Exit::Wrong,
            Self::Message { exit, .. } => *exit,
            Self::Closed => Exit::Ok,
        }
    }
}

impl From<Diagnostics> for CliError {
    fn from(diagnostics: Diagnostics) -> Self {
        Self::Diagnostics(Box::new(diagnostics))
    }
}

impl From<CacheError> for CliError {
    fn from(error: CacheError) -> Self {
        let exit = match error {
            CacheError::Interrupted => Exit::Interrupted,
            CacheError::Query(_) => Exit::Wrong,
            _ => Exit::Failed,
        };
        Self::Message {
            message: error.to_string(),
            help: error.help(),
            exit,
        }
    }
}

impl From<EngineError> for CliError {
    fn from(error: EngineError) -> Self {
        let exit = match &error {
            EngineError::UnknownNode { .. }
            | EngineError::UpstreamNotCached { .. }
            | EngineError::Data { .. } => Exit::Wrong,
            EngineError::Model { .. } | EngineError::Fetch { .. } => Exit::Failed,
            EngineError::Cache(CacheError::Interrupted) => Exit::Interrupted,
            EngineError::Cache(_) => Exit::Failed,
        };
        Self::Message {
            message: error.to_string(),
            help: error.help(),
            exit,
        }
    }
}

impl From<std::io::Error> for CliError {
    fn from(error: std::io::Error) -> Self {
        Self::failed(error.to_string(), None)
    }
}
