//! Fail points: named places where a test has the process killed or the disk fail.
//!
//! `FLOW_FAILPOINTS=entries.commit=kill@2,atomic.rename=eio` kills the process at the second time it comes to
//! `entries.commit` and fails the first rename. Only builds with debug assertions have them, so releases pay nothing.

use std::io;

/// The places, in the order in which a result passes them.
pub const PLACES: [&str; 14] = [
    "atomic.rename",
    "verdicts.commit",
    "verdicts.committed",
    "ledger.write",
    "object.move",
    "object.moved",
    "table.commit",
    "table.committed",
    "entries.sync",
    "entries.begin",
    "entries.commit",
    "entries.committed",
    "scratch.remove",
    "record.write",
];

/// The places on the way to a shared cache and back.
pub const REMOTE_PLACES: [&str; 3] = ["remote.put", "remote.entry", "remote.fetched"];

/// Comes to the place `name`, which is one of [`PLACES`] or [`REMOTE_PLACES`].
///
/// # Errors
/// What the disk would answer, where a test asked for it.
#[cfg(debug_assertions)]
pub fn hit(name: &'static str) -> io::Result<()> {
    armed::hit(name)
}

#[cfg(not(debug_assertions))]
#[inline(always)]
#[expect(
    clippy::unnecessary_wraps,
    reason = "the same signature as where it can fail"
)]
pub fn hit(_: &'static str) -> io::Result<()> {
    Ok(())
}

/// Comes to a place after which there is nothing that could fail any more: a kill is all that can happen there.
pub fn pass(name: &'static str) {
    // Where a test asked for a failure, none is possible.
    let _ = hit(name);
}

#[cfg(debug_assertions)]
mod armed {
    use std::io;
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    use rustix::io::Errno;
    use rustix::process::{Signal, getpid, kill_process};

    #[derive(Clone, Copy)]
    enum Action {
        Kill,
        Fail(Errno),
    }

    struct Point {
        name: String,
        action: Action,
        /// Acts when this gets from 1 to 0.
        left: AtomicU64,
    }

    static POINTS: LazyLock<Vec<Point>> = LazyLock::new(|| {
        let asked = std::env::var("FLOW_FAILPOINTS").unwrap_or_default();
        asked
            .split(',')
            .filter(|text| !text.is_empty())
            .map(|text| parse(text).unwrap_or_else(|| panic!("`{text}` is not a fail point")))
            .collect()
    });

    fn parse(text: &str) -> Option<Point> {
        let (name, action) = text.split_once('=')?;
        let (action, time) = action.split_once('@').unwrap_or((action, "1"));
        let action = match action {
            "kill" => Action::Kill,
            "eio" => Action::Fail(Errno::IO),
            "enospc" => Action::Fail(Errno::NOSPC),
            _ => return None,
        };
        is_place(name).then(|| Point {
            name: name.to_owned(),
            action,
            left: AtomicU64::new(time.parse().unwrap_or(1)),
        })
    }

    fn is_place(name: &str) -> bool {
        super::PLACES.contains(&name) || super::REMOTE_PLACES.contains(&name)
    }

    pub(super) fn hit(name: &str) -> io::Result<()> {
        debug_assert!(is_place(name), "`{name}` has no name");
        for point in POINTS.iter().filter(|point| point.name == name) {
            let left = point
                .left
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                    left.checked_sub(1)
                });
            if left != Ok(1) {
                continue;
            }
            match point.action {
                Action::Kill => {
                    kill_process(getpid(), Signal::KILL).expect("a process may end itself");
                    // The signal may take a moment; nothing happens meanwhile.
                    loop {
                        std::thread::park();
                    }
                }
                Action::Fail(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }
}
