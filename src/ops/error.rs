//! Why an op call did not give its outputs.

use std::io::ErrorKind;

use crate::cache::CacheError;

#[derive(Debug, thiserror::Error)]
pub enum OpError {
    /// The run was interrupted; progress so far is kept.
    #[error("interrupted")]
    Cancelled,
    /// What went wrong, with the place; `help` is the next step.
    #[error("{message}")]
    Failed {
        message: String,
        help: Option<String>,
    },
    #[error(transparent)]
    Cache(#[from] CacheError),
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error("database: {0}")]
    Database(#[from] duckdb::Error),
}

impl OpError {
    pub fn new(message: impl Into<String>) -> Self {
        Self::Failed {
            message: message.into(),
            help: None,
        }
    }

    pub fn with_help(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self::Failed {
            message: message.into(),
            help: Some(help.into()),
        }
    }

    /// The next step, where there is one to name.
    pub fn help(&self) -> Option<String> {
        match self {
            Self::Failed { help, .. } => help.clone(),
            Self::Cache(error) => error.help(),
            Self::Io(error) => matches!(
                error.kind(),
                ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge
            )
            .then(|| {
                "free some space and run the same command again; what was committed is kept"
                    .to_owned()
            }),
            Self::Cancelled | Self::Database(_) => None,
        }
    }
}
