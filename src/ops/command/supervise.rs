//! Watches over a running script: its output, its time, an interrupt, and that nothing of it outlives it.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command as Process, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use super::guard::{self, Watched};
use super::lines::Lines;
use crate::engine::Level;
use crate::ops::{Context, OpError};

/// The system's shell (as system(3) takes it). Looked for on the PATH it could only be started by a `fork`, see [`supervise`].
pub(super) const SHELL: &str = "/bin/sh";
/// Lines of stderr shown when a script fails.
const TAIL: usize = 20;
/// How often a running script is checked for an interrupt.
const TICK: Duration = Duration::from_millis(50);
/// How long a script may take to end when asked to.
const GRACE: Duration = Duration::from_secs(2);

/// Starts the script in a process group of its own and waits for its end, taking what it prints into the node's log.
/// Returns how it ended and the last lines of its stderr.
pub(super) fn supervise(
    context: &Context,
    mut process: Process,
    deadline: Option<Instant>,
) -> Result<(ExitStatus, VecDeque<String>), OpError> {
    let guard = guard::of_process().map_err(cannot_start)?;
    // Nothing is asked of the child before it starts `sh`, such as to end with its parent: with that, starting it would be
    // a `fork`, which takes longer the more memory flow uses, instead of a `vfork`.
    process
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    let child = process.spawn().map_err(cannot_start)?;
    let mut group = Group {
        pid: Pid::from_child(&child),
        child,
        watched: None,
        ended: false,
    };
    group.watched = Some(guard.watch(group.pid)?);
    let ended = pidfd_open(group.pid, PidfdFlags::empty()).map_err(std::io::Error::from)?;
    let mut outputs = [
        Lines::new(group.child.stdout.take().map(OwnedFd::from)),
        Lines::new(group.child.stderr.take().map(OwnedFd::from)),
    ];
    let mut tail = VecDeque::new();
    let mut stop: Option<(Instant, OpError)> = None;
    loop {
        let over = wait(&ended, &mut outputs)?;
        for (index, lines) in outputs.iter_mut().enumerate() {
            lines.take(over, |line| {
                if index == 1 {
                    tail.push_back(line.to_owned());
                    tail.drain(..tail.len().saturating_sub(TAIL));
                }
                context.log(Level::Debug, line);
            });
        }
        if over {
            break;
        }
        match &stop {
            Some((asked, _)) if asked.elapsed() > GRACE => group.signal(Signal::KILL),
            Some(_) => {}
            None => {
                let late = deadline.is_some_and(|deadline| Instant::now() >= deadline);
                if context.cancel.is_cancelled() {
                    stop = Some((Instant::now(), OpError::Cancelled));
                } else if late {
                    stop = Some((
                        Instant::now(),
                        OpError::with_help(
                            "the script did not end in time",
                            "raise `timeout`, or find out why it hangs",
                        ),
                    ));
                }
                if stop.is_some() {
                    group.signal(Signal::TERM);
                }
            }
        }
    }
    // What the script left running in the background must not write any more.
    let status = group.end()?;
    match stop {
        Some((_, error)) => Err(error),
        None => Ok((status, tail)),
    }
}

fn cannot_start(error: std::io::Error) -> OpError {
    OpError::with_help(
        format!("`{SHELL}` cannot be started: {error}"),
        "scripts need a POSIX shell there",
    )
}

/// A child with its process group; ended when dropped, on whatever way out.
struct Group {
    child: Child,
    pid: Pid,
    /// `None` before the guard knows of it and after its end.
    watched: Option<Watched>,
    /// The child was waited for: its number may now belong to another.
    ended: bool,
}

impl Group {
    fn signal(&self, signal: Signal) {
        // A group that has ended is what was wanted.
        let _ = kill_process_group(self.pid, signal);
    }

    /// Ends the whole group. Only after that the guard forgets it and its leader is waited for, which frees its number.
    fn end(&mut self) -> std::io::Result<ExitStatus> {
        self.signal(Signal::KILL);
        drop(self.watched.take());
        self.ended = true;
        self.child.wait()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if !self.ended {
            // Nothing can be done about a child that cannot be waited for.
            let _ = self.end();
        }
    }
}

/// Waits a moment for output or the child's end; says whether it has ended.
fn wait(ended: &OwnedFd, outputs: &mut [Lines; 2]) -> Result<bool, OpError> {
    let mut watched = vec![PollFd::new(ended, PollFlags::IN)];
    watched.extend(
        outputs
            .iter()
            .filter_map(|lines| lines.pipe.as_ref())
            .map(|pipe| PollFd::new(pipe, PollFlags::IN)),
    );
    let tick = Timespec {
        tv_sec: 0,
        tv_nsec: TICK.subsec_nanos().into(),
    };
    match poll(&mut watched, Some(&tick)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(!watched[0].revents().is_empty()),
        Err(error) => Err(std::io::Error::from(error).into()),
    }
}
