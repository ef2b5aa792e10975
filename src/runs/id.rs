//! The names of runs, which sort as the runs were started.

use std::path::Path;

use fs_err as fs;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};

const SECOND: &str = "%Y%m%d-%H%M%S";
/// Parts of a second that ids tell apart, as four hexadecimal digits.
const TICKS: u64 = 0x1_0000;

/// An id for a run that starts now: UTC to the second, then the fraction of the second as four hexadecimal digits.
///
/// It comes after all ids in the folder `runs`, also where the clock was set back since: the last run that was started is
/// `latest` and is kept first, whatever the clock says.
pub fn new_id(runs: &Path) -> std::io::Result<String> {
    let folders = match fs::read_dir(runs) {
        Ok(folders) => Some(folders),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let mut id = Id::of(Timestamp::now());
    for folder in folders.into_iter().flatten() {
        let name = folder?.file_name();
        if let Some(other) = name.to_str().and_then(Id::parse) {
            id = id.max(other.next());
        }
    }
    Ok(id.to_string())
}

/// Whether a run, or a variant of one, has this id.
pub fn is_taken(runs: &Path, id: &str) -> bool {
    let folders = fs::read_dir(runs).into_iter().flatten().flatten();
    folders.into_iter().any(|folder| {
        folder
            .file_name()
            .to_str()
            .is_some_and(|name| name.starts_with(id))
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Id {
    second: DateTime,
    tick: u64,
}

impl Id {
    fn of(time: Timestamp) -> Self {
        let time = TimeZone::UTC.to_datetime(time);
        let nanoseconds = time.subsec_nanosecond().unsigned_abs() as u64;
        Self {
            second: time - time.subsec_nanosecond().nanoseconds(),
            tick: nanoseconds * TICKS / 1_000_000_000,
        }
    }

    fn parse(name: &str) -> Option<Self> {
        // The variants of a matrix have their number behind it.
        let (id, rest) = name.split_at_checked(20)?;
        let (second, tick) = id.rsplit_once('-')?;
        let is_id = tick.len() == 4 && (rest.is_empty() || rest.starts_with('-'));
        let tick = is_id
            .then(|| u64::from_str_radix(tick, 16).ok())
            .flatten()?;
        let second = DateTime::strptime(SECOND, second).ok()?;
        Some(Self { second, tick })
    }

    fn next(self) -> Self {
        match self.tick + 1 {
            TICKS => Self {
                // At the end of time there is no next second, and no run either.
                second: self.second.saturating_add(1.second()),
                tick: 0,
            },
            tick => Self { tick, ..self },
        }
    }
}

impl std::fmt::Display for Id {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{:04x}", self.second.strftime(SECOND), self.tick)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_tells_the_time() {
        let time: Timestamp = "2026-11-24T00:18:35.2488Z".parse().unwrap();
        assert_eq!(Id::of(time).to_string(), "20261124-001835-3fb1");
        assert_eq!(Id::parse("20261124-001835-3fb1"), Some(Id::of(time)));
        assert_eq!(Id::parse("20261124-001835-3fb1-07"), Some(Id::of(time)));
        assert_eq!(Id::parse("notes"), None);
        assert_eq!(Id::parse("20261124-001835-group"), None);
    }

    #[test]
    fn a_new_id_comes_after_all_others_whatever_the_clock_says() {
        let runs = tempfile::tempdir().unwrap();
        let first = new_id(&runs.path().join("missing")).unwrap();
        for other in ["29991231-235959-ffff", "20200101-000000-0000", "notes"] {
            fs::create_dir(runs.path().join(other)).unwrap();
        }
        let second = new_id(runs.path()).unwrap();
        assert_eq!(second, "30000101-000000-0000");
        assert!(first < second);
        fs::create_dir(runs.path().join(&second)).unwrap();
        assert!(is_taken(runs.path(), &second) && !is_taken(runs.path(), &first));
        assert_eq!(new_id(runs.path()).unwrap(), "30000101-000000-0001");
    }
}
