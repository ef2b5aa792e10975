//! The guard: a small process that ends running scripts when flow itself is killed.
//!
//! It holds the other end of a pipe that closes with flow, however flow ends, and is told of every group of processes that
//! starts and ends. The system could end a child with its parent (`PR_SET_PDEATHSIG`), but not what the child has started.
//! A guard that was killed too is made up for by the next run, see `engine::children`.

use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::Mutex;

use rustix::process::Pid;

use super::supervise::SHELL;

/// Reads `+ GROUP` and `- GROUP` until the end, then kills the groups that are left. Signals that a terminal sends to
/// everything in it do not end the guard before flow.
const SCRIPT: &str = r#"
trap '' HUP INT QUIT TERM
groups=' '
while read -r change group; do
  case $change in
    +) groups="$groups$group " ;;
    -) groups="${groups%% "$group" *} ${groups#* "$group" }" ;;
  esac
done
for group in $groups; do kill -s KILL -- "-$group"; done
"#;

/// The one guard of this process, started with the first script.
static GUARD: Guard = Guard(Mutex::new(None));

pub(super) struct Guard(Mutex<Option<ChildStdin>>);

/// The guard of this process, started if there is none yet.
///
/// # Errors
/// The shell cannot be started.
pub(super) fn of_process() -> io::Result<&'static Guard> {
    GUARD.start()?;
    Ok(&GUARD)
}

impl Guard {
    fn start(&self) -> io::Result<()> {
        let mut pipe = self.0.lock().expect("no holder panics");
        if pipe.is_none() {
            let mut guard = Command::new(SHELL)
                .args(["-c", SCRIPT, "flow-guard"])
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .process_group(0)
                .spawn()?;
            // Never waited for: it outlives this process by the moment it needs to end what is left.
            *pipe = guard.stdin.take();
        }
        Ok(())
    }

    /// Has the group of `pid` killed when this process ends before the returned value is dropped.
    ///
    /// # Errors
    /// The guard is gone and cannot be started again.
    pub(super) fn watch(&'static self, pid: Pid) -> io::Result<Watched> {
        self.tell('+', pid).or_else(|_| {
            self.start()?;
            self.tell('+', pid)
        })?;
        Ok(Watched { guard: self, pid })
    }

    fn tell(&self, change: char, pid: Pid) -> io::Result<()> {
        let mut pipe = self.0.lock().expect("no holder panics");
        // In one write, so that a kill leaves no half of a line.
        let line = format!("{change} {pid}\n");
        let told = match pipe.as_mut() {
            Some(pipe) => pipe.write_all(line.as_bytes()),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        };
        if told.is_err() {
            // The next script gets a new one.
            *pipe = None;
        }
        told
    }
}

/// A group of processes that the guard watches.
pub(super) struct Watched {
    guard: &'static Guard,
    pid: Pid,
}

impl Drop for Watched {
    fn drop(&mut self) {
        // A guard that is gone forgot it anyway.
        let _ = self.guard.tell('-', self.pid);
    }
}
