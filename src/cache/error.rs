//! What can go wrong in the cache, each with the next step.

use std::path::{Path, PathBuf};

use crate::digest::Digest;

#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    #[error(transparent)]
    Io(std::io::Error),
    /// A full disk, or a limit of the user's own.
    #[error("there is no room for `{}`: {message}", .path.display())]
    DiskFull { path: PathBuf, message: String },
    #[error("`{}` is damaged: {message}", .path.display())]
    Damaged { path: PathBuf, message: String },
    #[error("the cache `{}` has layout {found}; this flow knows layouts up to {known}", .path.display())]
    NewerLayout {
        path: PathBuf,
        found: String,
        known: u32,
    },
    #[error("`{}` is in use by another process: {message}", .path.display())]
    Busy { path: PathBuf, message: String },
    /// A query that holds more than the database may, and cannot spill it.
    #[error("there is not enough memory: {0}")]
    OutOfMemory(String),
    /// A query that does not parse, bind or run.
    #[error("{0}")]
    Query(String),
    #[error("the query uses `${name}`, which is not a param{}", list(.known))]
    UnknownParam { name: String, known: Vec<String> },
    #[error("the param `${name}` cannot be bound: {message}")]
    BadParam { name: String, message: String },
    /// A folder given as a files output that cannot be kept as it is.
    #[error("`{}` {message}", .path.display())]
    Files { path: PathBuf, message: String },
    /// Something from outside that is not what it should be.
    #[error("`{}` does not hold `{}`: its content is `{}`", .path.display(), .wanted.short(), .found.short())]
    OtherContent {
        path: PathBuf,
        wanted: Digest,
        found: Digest,
    },
    #[error("`{}` cannot be read: {message}", .path.display())]
    Unreadable { path: PathBuf, message: String },
    #[error("interrupted while waiting for the cache")]
    Interrupted,
    #[error("database: {0}")]
    Database(duckdb::Error),
}

/// What the system says when a file cannot grow (errno(3)): ENOSPC, EDQUOT, EFBIG.
const NO_ROOM: [&str; 3] = [
    "No space left on device",
    "Disk quota exceeded",
    "File too large",
];

fn list(known: &[String]) -> String {
    if known.is_empty() {
        return "; there are none".to_owned();
    }
    let names: Vec<_> = known.iter().map(|name| format!("`${name}`")).collect();
    format!("; there are {}", names.join(", "))
}

impl CacheError {
    /// Refuses content that has another digest than was `wanted`; its place is named by who knows it.
    pub(super) fn other_content(wanted: Option<&Digest>, found: Digest) -> Result<(), Self> {
        match wanted {
            Some(wanted) if *wanted != found => Err(Self::OtherContent {
                path: PathBuf::new(),
                wanted: *wanted,
                found,
            }),
            _ => Ok(()),
        }
    }

    /// The next step, where there is one to name.
    pub fn help(&self) -> Option<String> {
        Some(match self {
            Self::DiskFull { .. } => "free some space (`flow cache gc` drops old results) and run the same command again; what was committed is kept".to_owned(),
            Self::Damaged { path, .. } => format!("`flow run` makes it anew and takes over what is kept beside it: files and verdicts; where that fails too, move `{}` away first", path.display()),
            Self::NewerLayout { .. } => "use the newer flow that wrote it, or another cache folder (`FLOW_CACHE`)".to_owned(),
            Self::Busy { .. } => "try again when it has finished".to_owned(),
            Self::Io(error) if is_denied(error) => "make the folder writable, or name another cache folder with `FLOW_CACHE`".to_owned(),
            Self::OutOfMemory(_) => "the database takes at most half of the free memory: free some, or run fewer nodes at once (`--jobs 1`); lists that a query makes are held in memory whole".to_owned(),
            Self::OtherContent { .. } | Self::Unreadable { .. } => "remove it, so that it is made again".to_owned(),
            Self::UnknownParam { .. } => "declare it under `with:` or correct the name".to_owned(),
            _ => return None,
        })
    }

    /// The same error about a file whose full path is known.
    pub(super) fn at(mut self, full: &Path) -> Self {
        if let Self::DiskFull { path, .. }
        | Self::Damaged { path, .. }
        | Self::NewerLayout { path, .. }
        | Self::Busy { path, .. } = &mut self
        {
            *path = full.to_path_buf();
        }
        self
    }

    /// Sorts a database error by what the user can do about it.
    pub(super) fn database(error: duckdb::Error, path: &Path) -> Self {
        let message = error.to_string();
        let path = path.to_path_buf();
        let has = |needles: &[&str]| needles.iter().any(|needle| message.contains(needle));
        let full = NO_ROOM.iter().find(|needle| message.contains(**needle));
        if let Some(full) = full {
            Self::DiskFull {
                path,
                message: (*full).to_owned(),
            }
        } else if has(&["Could not set lock on file", "Conflicting lock"]) {
            Self::Busy {
                path,
                message: first_line(&message),
            }
        } else if let Some((_, what)) = message.split_once("Out of Memory Error: ") {
            Self::OutOfMemory(first_line(what))
        } else if has(&["newer version of DuckDB", "version number"])
            && has(&["storage", "version"])
        {
            Self::NewerLayout {
                path,
                found: first_line(&message),
                known: super::layout::LAYOUT,
            }
        } else if has(&[
            "not a valid DuckDB database",
            "Corrupt",
            "corrupt",
            "checksum",
            "Failed to deserialize",
            "Could not read enough bytes",
            "end of file",
            "Failure while replaying WAL",
        ]) {
            Self::Damaged {
                path,
                message: first_line(&message),
            }
        } else {
            Self::Database(error)
        }
    }
}

fn is_denied(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{NotADirectory, PermissionDenied, ReadOnlyFilesystem};
    matches!(
        error.kind(),
        PermissionDenied | ReadOnlyFilesystem | NotADirectory
    )
}

impl From<std::io::Error> for CacheError {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::StorageFull
            | std::io::ErrorKind::QuotaExceeded
            | std::io::ErrorKind::FileTooLarge => Self::DiskFull {
                path: PathBuf::from("cache"),
                message: error.to_string(),
            },
            _ => Self::Io(error),
        }
    }
}

impl From<duckdb::Error> for CacheError {
    fn from(error: duckdb::Error) -> Self {
        Self::database(error, Path::new("flow.duckdb"))
    }
}

pub(super) fn first_line(message: &str) -> String {
    message
        .lines()
        .next()
        .unwrap_or_default()
        .trim_end_matches('.')
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_runs_out_is_told_apart() {
        let connection = duckdb::Connection::open_in_memory().unwrap();
        let failed = connection
            .execute_batch("set memory_limit = '20MB'; set temp_directory = ''; create table t as select list(range) from range(10000000)")
            .unwrap_err();
        let error = CacheError::from(failed);
        assert!(matches!(error, CacheError::OutOfMemory(_)), "{error}");
        let message = error.to_string();
        assert!(
            message.starts_with("there is not enough memory: ") && !message.contains('\n'),
            "{message}"
        );
    }
}
