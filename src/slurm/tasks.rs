//! The tasks of one folder as Slurm has them.

use std::time::{Duration, Instant};

use super::executor::Shared;
use super::queue::Listed;
use super::state;
use super::submission::{Submission, Wanted};
use crate::jobs::{Prepared, Running, Standing, last_lines};
use crate::ops::OpError;

/// Lines shown of what a job printed.
const TAIL: usize = 20;
/// How long a running job may show no sign of life before that is told.
const SILENCE: Duration = Duration::from_secs(60);

pub(super) struct Tasks<'a> {
    shared: &'a Shared,
    prepared: &'a Prepared,
    wanted: &'a Wanted,
    submission: Submission,
    since: Instant,
    /// What the files of each task last said of its being alive, and when that was new.
    pulses: Vec<Option<(String, Instant)>>,
    /// Since when Slurm says that a task is at work, and its files say nothing.
    silent: Vec<Option<Instant>>,
}

impl<'a> Tasks<'a> {
    /// Starts what is not started: all tasks of a new folder; of one that was found, those without a good end that Slurm
    /// does not have either.
    pub(super) fn start(
        shared: &'a Shared,
        prepared: &'a Prepared,
        wanted: &'a Wanted,
    ) -> Result<Self, OpError> {
        let Prepared { folder, job, found } = prepared;
        let mut tasks = Self {
            shared,
            prepared,
            wanted,
            submission: Submission::read(folder)?,
            since: Instant::now(),
            pulses: vec![None; job.tasks as usize],
            silent: vec![None; job.tasks as usize],
        };
        if *found {
            tasks.submission.settle(folder, job)?;
        }
        let mut left = Vec::new();
        for task in prepared.open_tasks()? {
            if !*found || !tasks.is_with_slurm(task)? {
                left.push(task);
            }
        }
        if !left.is_empty() {
            tasks.submit(&left)?;
        }
        shared.add(&tasks.submission);
        Ok(tasks)
    }

    fn submit(&mut self, tasks: &[u32]) -> Result<(), OpError> {
        let Prepared { folder, job, .. } = self.prepared;
        self.submission
            .submit(folder, job, tasks, &self.shared.options, self.wanted)?;
        self.since = Instant::now();
        self.shared.add(&self.submission);
        self.shared.queue.expect_news();
        Ok(())
    }

    /// Whether Slurm has a task that an earlier process started. Waits until it is known.
    fn is_with_slurm(&mut self, task: u32) -> Result<bool, OpError> {
        let Some(id) = self.submission.id(task) else {
            return Ok(false);
        };
        let rows = super::queue::ask(&[]).map_err(|trouble| {
            OpError::with_help(
                format!("it is not known whether Slurm job {id} is still there: {trouble}"),
                "run again when `squeue` answers",
            )
        })?;
        let alive = |row: &super::queue::Row| {
            matches!(
                state::standing(&row.state, &row.reason, &id),
                Standing::Alive { .. }
            )
        };
        Ok(rows.get(&id).is_some_and(alive))
    }

    /// Whether the files of a task say that it is at work.
    fn has_pulse(&mut self, task: u32) -> Result<bool, OpError> {
        let Some(now) = self.prepared.folder.task(task).pulse()? else {
            return Ok(false);
        };
        let last = &mut self.pulses[task as usize];
        if last.as_ref().is_none_or(|(pulse, _)| *pulse != now) {
            // The first that is seen may be an old one.
            let is_news = last.is_some();
            *last = Some((now, Instant::now()));
            return Ok(is_news);
        }
        Ok(last
            .as_ref()
            .is_some_and(|(_, when)| when.elapsed().as_secs() < 3))
    }

    fn id(&self, task: u32) -> String {
        self.submission.id(task).unwrap_or_else(|| "?".to_owned())
    }
}

impl Running for Tasks<'_> {
    fn standing(&mut self, task: u32) -> Result<Standing, OpError> {
        if self.has_pulse(task)? {
            self.silent[task as usize] = None;
            return Ok(Standing::Alive { waiting: None });
        }
        let (id, name) = (self.id(task), self.name(task));
        Ok(match self.shared.queue.listed(&id, self.since) {
            Listed::As(row) => match state::standing(&row.state, &row.reason, &name) {
                // It may not have begun yet, its machine may stand still, or Slurm may be wrong about it.
                Standing::Alive { waiting: None } => {
                    let since = self.silent[task as usize].get_or_insert_with(Instant::now);
                    let waiting =
                        (since.elapsed() > SILENCE).then(|| state::silent(&row.state, &id));
                    Standing::Alive { waiting }
                }
                standing => {
                    self.silent[task as usize] = None;
                    standing
                }
            },
            Listed::Not => match super::executor::accounted(&id) {
                Some(state) => match state::standing(&state, "", &name) {
                    // Accounting lags behind, and an end that it knows of is not always one that is seen.
                    Standing::Alive { .. } => Standing::Lost {
                        what: format!("{name} is gone"),
                    },
                    standing => standing,
                },
                None => Standing::Lost {
                    what: format!("{name} is gone"),
                },
            },
            Listed::Unknown => {
                self.shared.complain();
                Standing::Alive { waiting: None }
            }
        })
    }

    fn again(&mut self, task: u32) -> Result<(), OpError> {
        self.pulses[task as usize] = None;
        self.submit(&[task])
    }

    fn stop(&mut self) {
        let ids = self.submission.ids();
        self.shared.cancel(&ids, &["--state=PENDING"]);
        // The script has become the worker, which no step is.
        self.shared.cancel(&ids, &["--batch", "--signal=TERM"]);
        self.shared.queue.expect_news();
    }

    fn kill(&mut self) {
        self.shared.cancel(&self.submission.ids(), &[]);
        self.shared.queue.expect_news();
    }

    fn name(&mut self, task: u32) -> String {
        let id = self.id(task);
        match self.shared.queue.listed(&id, self.since) {
            Listed::As(row) if !row.node.is_empty() => format!("Slurm job {id} on {}", row.node),
            _ => format!("Slurm job {id}"),
        }
    }

    fn printed(&mut self, task: u32) -> Vec<String> {
        let name = format!("{}.txt", self.id(task));
        last_lines(&self.prepared.folder.logs().join(name), TAIL)
    }
}

impl Drop for Tasks<'_> {
    fn drop(&mut self) {
        // Nobody will follow them.
        if std::thread::panicking() {
            self.kill();
        }
        self.shared.forget(&self.submission);
    }
}
