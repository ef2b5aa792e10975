//! Follows started tasks to their end: re-tells what they say, takes their answers, starts again what was lost.

use std::time::{Duration, Instant};

use super::events::Tails;
use super::folder::{Ended, JobFolder, Report};
use super::job::Prepared;
use crate::engine::{Event, EventKind};
use crate::ops::{Context, OpError};

/// Between two looks at the files of a job: the first, and the longest while nothing happens.
const FIRST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(1);
/// For each task of a job at least: a look opens seven files, which a shared folder bears only so often.
const SPACING: Duration = Duration::from_millis(5);
/// How long files may take to appear here after their writer has ended elsewhere.
const GRACE: Duration = Duration::from_secs(5);
/// How long interrupted tasks may take to save their progress.
const STOPPING: Duration = Duration::from_secs(180);
/// How long a task may wait before that is told.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often one task is started again after its machine was lost.
const RESTARTS: u32 = 3;

/// Tasks that were started, as whoever started them sees them.
pub trait Running {
    fn standing(&mut self, task: u32) -> Result<Standing, OpError>;

    /// Starts a task anew.
    fn again(&mut self, task: u32) -> Result<(), OpError>;

    /// Asks all tasks to save their progress and end.
    fn stop(&mut self);

    /// Ends all tasks.
    fn kill(&mut self);

    /// `Slurm job 12 on n1`.
    fn name(&mut self, task: u32) -> String;

    /// The last lines that a task printed.
    fn printed(&mut self, task: u32) -> Vec<String>;
}

/// What is known of a task that has left no report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It works, or will; `waiting` says for what it waits, where it does.
    Alive { waiting: Option<String> },
    /// It will never leave one.
    Ended { what: String, help: String },
    /// Its machine went away from under it.
    Lost { what: String },
}

/// Looks after one task.
struct Watched {
    report: Option<Report>,
    /// Since when nobody works at it, and what its last sign of life was then.
    silent: Option<(Instant, Option<String>)>,
    /// It has ended without a report after it was asked to stop.
    over: bool,
    restarts: u32,
    /// For what it waits and since when, and whether that was told.
    waits: Option<(String, Instant, bool)>,
}

/// Waits until all tasks have ended well, and gives their reports in order.
///
/// # Errors
/// The first task that fails, after all others have been ended; [`OpError::Cancelled`] after an interrupt.
pub fn follow(
    prepared: &Prepared,
    running: &mut dyn Running,
    context: &Context<'_>,
    take: &mut dyn FnMut(&[String]) -> Result<(), OpError>,
) -> Result<Vec<Report>, OpError> {
    let folder = &prepared.folder;
    let mut tails = Tails::default();
    let new = || Watched {
        report: None,
        silent: None,
        over: false,
        restarts: 0,
        waits: None,
    };
    let mut tasks: Vec<Watched> = (0..prepared.job.tasks).map(|_| new()).collect();
    let shortest = FIRST.max(SPACING * prepared.job.tasks);
    let (mut pause, mut stopping) = (shortest, None::<Instant>);
    loop {
        let mut news = false;
        for (number, task) in tasks.iter_mut().enumerate() {
            // The report first: all that its task has said was written before.
            if task.report.is_none() {
                task.report = folder.task(number as u32).report()?;
                news |= task.report.is_some();
            }
        }
        news |= hear(folder, tasks.len() as u32, &mut tails, context, take)?;
        for (number, task) in tasks.iter_mut().enumerate() {
            if let Some(Report {
                ended: Ended::Failed { message, help },
                ..
            }) = &task.report
            {
                running.kill();
                let name = running.name(number as u32);
                return Err(OpError::Failed {
                    message: format!("{message} ({name})"),
                    help: help.clone(),
                });
            }
        }
        if tasks.iter().all(|task| task.report.is_some()) {
            return Ok(tasks.into_iter().filter_map(|task| task.report).collect());
        }
        if context.cancel.is_cancelled() && stopping.is_none() {
            running.stop();
            stopping = Some(Instant::now());
        }
        for (number, task) in tasks.iter_mut().enumerate() {
            if task.report.is_none() && !task.over {
                let number = number as u32;
                let looked = look(folder, number, task, running, context, stopping.is_some());
                if looked.is_err() {
                    running.kill();
                }
                looked?;
            }
        }
        if let Some(since) = stopping {
            if tasks.iter().all(|task| task.over || task.report.is_some()) {
                return Err(OpError::Cancelled);
            }
            if since.elapsed() > STOPPING {
                running.kill();
                return Err(OpError::Cancelled);
            }
        }
        pause = if news {
            shortest
        } else {
            pause.mul_f64(1.3).min(LONGEST.max(shortest))
        };
        sleep(pause, context, stopping.is_some());
    }
}

/// Looks what has become of a task without a report.
fn look(
    folder: &JobFolder,
    number: u32,
    task: &mut Watched,
    running: &mut dyn Running,
    context: &Context<'_>,
    stopping: bool,
) -> Result<(), OpError> {
    let files = folder.task(number);
    if stopping && files.has_stopped()? {
        task.over = true;
        return Ok(());
    }
    let standing = running.standing(number)?;
    let (what, help) = match standing {
        Standing::Alive { waiting } => {
            task.silent = None;
            let Some(waiting) = waiting else {
                task.waits = None;
                return Ok(());
            };
            match &mut task.waits {
                Some((what, since, told)) if *what == waiting => {
                    if !*told && since.elapsed() > PATIENCE {
                        *told = true;
                        context.info(format!("{} {waiting}", running.name(number)));
                    }
                }
                waits => *waits = Some((waiting, Instant::now(), false)),
            }
            return Ok(());
        }
        Standing::Ended { what, help } => (what, Some(help)),
        Standing::Lost { what } => (what, None),
    };
    let pulse = files.pulse()?;
    let (since, before) = task
        .silent
        .get_or_insert_with(|| (Instant::now(), pulse.clone()));
    if since.elapsed() < GRACE {
        return Ok(());
    }
    if help.is_none() && *before != pulse {
        // Whoever keeps the list of jobs does not see it, but it works.
        task.silent = None;
        return Ok(());
    }
    if stopping {
        task.over = true;
        return Ok(());
    }
    let Some(help) = help else {
        if task.restarts == RESTARTS {
            return Err(OpError::with_help(
                format!("{what}, for the {}th time", RESTARTS + 1),
                "run again, perhaps on another partition; progress so far is kept",
            ));
        }
        context.warn(format!("{what}; it is started again"));
        running.again(number)?;
        task.restarts += 1;
        task.silent = None;
        return Ok(());
    };
    let printed: String = running
        .printed(number)
        .iter()
        .map(|line| format!("\n  {line}"))
        .collect();
    let logs = folder.aside().logs();
    Err(OpError::with_help(
        format!("{what}{printed}"),
        format!("{help}; what it printed is kept in `{}`", logs.display()),
    ))
}

/// Re-tells what tasks have said since the last time, and takes what they have answered; whether there was anything.
fn hear(
    folder: &JobFolder,
    tasks: u32,
    tails: &mut Tails,
    context: &Context<'_>,
    take: &mut dyn FnMut(&[String]) -> Result<(), OpError>,
) -> Result<bool, OpError> {
    let (mut answers, mut heard) = (Vec::new(), false);
    for number in 0..tasks {
        let task = folder.task(number);
        answers.extend(tails.lines(&task, "answers.jsonl")?);
        for line in tails.lines(&task, "events.jsonl")? {
            heard = true;
            if let Ok(event) = serde_json::from_str::<Event>(&line) {
                // Progress of a part is not that of the whole.
                if tasks == 1 || !matches!(event.kind, EventKind::Progress { .. }) {
                    context.sink.event(&event);
                }
            }
        }
    }
    if !answers.is_empty() {
        take(&answers)?;
    }
    Ok(heard || !answers.is_empty())
}

/// Sleeps, but not through an interrupt.
fn sleep(pause: Duration, context: &Context<'_>, stopping: bool) {
    const TICK: Duration = Duration::from_millis(100);
    let start = Instant::now();
    while start.elapsed() < pause && (stopping || !context.cancel.is_cancelled()) {
        std::thread::sleep(TICK.min(pause - start.elapsed().min(pause)));
    }
}
