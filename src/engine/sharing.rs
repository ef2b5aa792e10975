//! The shared cache in a run: results go there in the background while nodes run, and the end of the run waits for them.

use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::Scope;
use std::time::{Duration, Instant};

use super::outcome::SharedOutcome;
use super::{CancelToken, Event, EventKind, Level, Progress, Sink};
use crate::cache::{Cache, RemoteError, Sent};
use crate::graph::Fingerprint;

/// Results sent at once; each moves several parts of a file.
const AT_ONCE: usize = 4;
/// How often the end of the run looks whether all is sent.
const LOOK: Duration = Duration::from_millis(20);

pub(super) struct Sharing<'run> {
    cache: &'run Cache,
    /// `None` where nothing can be sent, and once the run is over.
    queue: Mutex<Option<Sender<Fingerprint>>>,
    inbox: Mutex<Receiver<Fingerprint>>,
    tally: Mutex<Tally>,
}

#[derive(Debug, Default)]
struct Tally {
    shared: SharedOutcome,
    /// Results that the threads have dealt with, of those offered.
    done: usize,
    offered: usize,
    /// When the first was offered and the last was done.
    first: Option<Instant>,
    last: Option<Instant>,
    problems: Vec<String>,
}

impl<'run> Sharing<'run> {
    pub(super) fn new(cache: &'run Cache) -> Self {
        let (queue, inbox) = mpsc::channel();
        let takes = cache.remote().is_some_and(|remote| remote.takes());
        Self {
            cache,
            queue: Mutex::new(takes.then_some(queue)),
            inbox: Mutex::new(inbox),
            tally: Mutex::default(),
        }
    }

    /// Starts the threads that send, where there is something to send to.
    pub(super) fn start<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        cancel: &'scope CancelToken,
    ) {
        if lock(&self.queue).is_none() {
            return;
        }
        for number in 1..=AT_ONCE {
            let spawned = std::thread::Builder::new()
                .name(format!("sender {number}"))
                .spawn_scoped(scope, || self.work(cancel));
            if let Err(error) = spawned
                && number == 1
            {
                lock(&self.queue).take();
                lock(&self.tally)
                    .problems
                    .push(format!("no thread can be started: {error}"));
                return;
            }
        }
    }

    fn work(&self, cancel: &CancelToken) {
        loop {
            let next = lock(&self.inbox).recv();
            let Ok(fingerprint) = next else {
                return;
            };
            // What is left when the user wants to stop goes with the next run.
            let sent = if cancel.is_cancelled() {
                Ok(Sent::NotHere)
            } else {
                self.cache.send(fingerprint)
            };
            let mut tally = lock(&self.tally);
            match sent {
                Ok(Sent::Sent) => tally.shared.sent += 1,
                Ok(Sent::There) => {}
                Ok(Sent::NotHere) => tally.shared.unsent += 1,
                // Told once, when it was given up.
                Err(RemoteError::Unusable { .. }) => tally.shared.unsent += 1,
                Err(error) => {
                    tally.shared.unsent += 1;
                    tally.problems.push(error.to_string());
                }
            }
            tally.done += 1;
            tally.last = Some(Instant::now());
        }
    }

    /// Counts a result that was found there, and says whether it has to be sent: it may be here and not there.
    pub(super) fn note_cached(&self, fingerprint: Fingerprint, is_here: bool) {
        if is_here {
            self.offer(fingerprint);
        } else {
            lock(&self.tally).shared.elsewhere += 1;
        }
    }

    pub(super) fn note_fetched(&self) {
        lock(&self.tally).shared.fetched += 1;
    }

    /// Has a result sent if it is not known to be there.
    pub(super) fn offer(&self, fingerprint: Fingerprint) {
        if !self.cache.is_unsent(fingerprint) {
            return;
        }
        let queue = lock(&self.queue);
        if queue
            .as_ref()
            .is_some_and(|queue| queue.send(fingerprint).is_ok())
        {
            let mut tally = lock(&self.tally);
            tally.offered += 1;
            tally.first.get_or_insert_with(Instant::now);
        }
    }

    /// Waits until everything offered is there or has failed.
    pub(super) fn finish(&self, sink: &dyn Sink) -> Option<SharedOutcome> {
        let remote = self.cache.remote()?;
        lock(&self.queue).take();
        let mut told = Instant::now();
        loop {
            let tally = lock(&self.tally);
            if tally.done >= tally.offered {
                break;
            }
            drop(tally);
            std::thread::sleep(LOOK);
            if told.elapsed() > 10 * LOOK {
                told = Instant::now();
                sink.event(&Event::now(EventKind::Progress {
                    node: "shared cache".to_owned(),
                    progress: Progress {
                        done: remote.counts().sent,
                        total: 0,
                        unit: "bytes".to_owned(),
                        note: "sent".to_owned(),
                    },
                }));
            }
        }
        let mut tally = lock(&self.tally);
        // The same problem of many results is one.
        tally.problems.dedup();
        for problem in tally.problems.drain(..) {
            warn(
                sink,
                format!("a result was not sent to the shared cache: {problem}"),
            );
        }
        tell_warnings(self.cache, sink);
        let counts = remote.counts();
        let seconds = match (tally.first, tally.last) {
            (Some(first), Some(last)) => (last - first).as_secs_f64(),
            _ => 0.0,
        };
        Some(SharedOutcome {
            address: remote.address().to_owned(),
            sent_bytes: counts.sent,
            received_bytes: counts.received,
            seconds,
            ..tally.shared.clone()
        })
    }
}

/// Passes on what the shared cache has to say.
pub(super) fn tell_warnings(cache: &Cache, sink: &dyn Sink) {
    for message in cache
        .remote()
        .map(|remote| remote.warnings())
        .unwrap_or_default()
    {
        warn(sink, message);
    }
}

fn warn(sink: &dyn Sink, message: String) {
    sink.event(&Event::now(EventKind::Log {
        node: None,
        level: Level::Warn,
        message,
    }));
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
