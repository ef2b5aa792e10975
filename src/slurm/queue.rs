//! The list of one's jobs: one `squeue` for all of them, asked at an interval that grows while nothing changes.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::command::{answer, command};

const SHORTEST: Duration = Duration::from_secs(2);
const LONGEST: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) state: String,
    pub(super) job_name: String,
    pub(super) node: String,
    pub(super) reason: String,
}

/// What the list says of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Listed {
    As(Row),
    /// It was not there when the list was made, long enough after the job.
    Not,
    /// The list cannot be had, or is older than the job.
    Unknown,
}

#[derive(Debug, Default)]
pub(super) struct Queue {
    list: Mutex<List>,
}

#[derive(Debug, Default)]
struct List {
    rows: HashMap<String, Row>,
    /// When it was asked for, and when it was had.
    asked: Option<Instant>,
    had: Option<Instant>,
    pause: Duration,
    trouble: Option<String>,
}

impl Queue {
    /// What is known of the job or task `id` (`12`, `12_3`), which was there at `since`.
    pub(super) fn listed(&self, id: &str, since: Instant) -> Listed {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if list
            .asked
            .is_none_or(|asked| now.duration_since(asked) >= list.pause.max(SHORTEST))
        {
            list.refresh(now);
        }
        match list.rows.get(id) {
            Some(row) => Listed::As(row.clone()),
            // A job may take a moment to be listed.
            None if list.had.is_some_and(|had| had > since + SHORTEST) => Listed::Not,
            None => Listed::Unknown,
        }
    }

    /// Something was started or stopped: the next look is a new one.
    pub(super) fn expect_news(&self) {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        list.pause = SHORTEST;
    }

    /// What is the matter with the list, where it cannot be had.
    pub(super) fn trouble(&self) -> Option<String> {
        let list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        list.trouble.clone()
    }
}

impl List {
    fn refresh(&mut self, now: Instant) {
        self.asked = Some(now);
        match ask(&[]) {
            Ok(rows) => {
                self.pause = if rows == self.rows {
                    self.pause.max(SHORTEST).mul_f64(1.5).min(LONGEST)
                } else {
                    SHORTEST
                };
                self.rows = rows;
                self.had = Some(now);
                self.trouble = None;
            }
            Err(trouble) => {
                self.pause = self.pause.max(SHORTEST).mul_f64(1.5).min(LONGEST);
                self.trouble = Some(trouble);
            }
        }
    }
}

/// One's jobs as they are now, also those that have ended lately, by id.
pub(super) fn ask(more: &[&str]) -> Result<HashMap<String, Row>, String> {
    let mut squeue = command("squeue");
    squeue
        .args(["--me", "--states=all", "--array", "--noheader"])
        .arg("--format=%i|%T|%j|%N|%r")
        .args(more);
    Ok(answer(&mut squeue)?.lines().filter_map(parse).collect())
}

fn parse(line: &str) -> Option<(String, Row)> {
    let mut fields = line.trim().splitn(5, '|');
    let mut next = || fields.next().map(str::to_owned);
    let (id, state, job_name, node) = (next()?, next()?, next()?, next()?);
    let row = Row {
        state,
        job_name,
        node,
        reason: next()?,
    };
    Some((id, row))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_squeue() {
        let (id, row) = parse("12_3|PENDING|flow-ab|| (Resources)").unwrap();
        assert_eq!(id, "12_3");
        assert_eq!((row.state.as_str(), row.node.as_str()), ("PENDING", ""));
        let (_, row) = parse("7|RUNNING|flow-ab|n1|None").unwrap();
        assert_eq!((row.node.as_str(), row.reason.as_str()), ("n1", "None"));
        assert_eq!(parse("slurm_load_jobs error"), None);
    }
}
