//! Sends behind a run that is on, on a thread of its own. Whatever the server does, the run neither stops nor waits.

use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use reqwest::Url;

use super::failure::{Backoff, Failure};
use super::sender::{Sender, Step};
use super::settings::ApiKey;

/// How fast things go.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Between requests while all goes well: so long, after a beginning in shorter steps from a second on.
    pub interval: Duration,
    /// The first wait after a failure, and the longest.
    pub first_retry: Duration,
    pub last_retry: Duration,
    /// How long the end of a run waits for a server that acknowledges nothing.
    pub patience: Duration,
}

/// People look whether their run has arrived.
const FIRST_INTERVAL: Duration = Duration::from_secs(1);

impl Default for Pace {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(15),
            first_retry: Duration::from_secs(2),
            last_retry: Duration::from_secs(60),
            patience: Duration::from_secs(10),
        }
    }
}

/// How sending ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// Everything is there.
    Done,
    /// The server does not take it now; `flow sync` can send the rest.
    Later(String),
    /// The server does not want it.
    Refused(String),
}

pub struct Live {
    shared: Arc<Shared>,
    patience: Duration,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// The run is over: no more waiting between requests.
    ending: bool,
    /// Requests that were acknowledged.
    acknowledged: u64,
    /// The latest failure since the last acknowledged request.
    failure: Option<String>,
    /// Nobody waits any more.
    abandoned: bool,
    ended: Option<Ending>,
}

impl Live {
    pub fn start(folder: PathBuf, base_url: Url, key: ApiKey, pace: Pace) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let of_thread = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("tracking".to_owned())
            .spawn(move || {
                let ending = match Sender::open(&folder, &base_url, &key) {
                    Ok(mut sender) => of_thread.send(&mut sender, pace),
                    Err(failure) => Ending::Refused(failure.to_string()),
                };
                of_thread.state().ended = Some(ending);
                of_thread.changed.notify_all();
            })?;
        Ok(Self {
            shared,
            patience: pace.patience,
        })
    }

    /// Sends the rest for as long as the server keeps acknowledging. The thread may outlive this: a request that hangs is
    /// left alone, and counts as not acknowledged.
    pub fn end(self) -> Ending {
        let mut state = self.shared.state();
        state.ending = true;
        self.shared.changed.notify_all();
        loop {
            let before = state.acknowledged;
            let is_same = |state: &mut State| state.ended.is_none() && state.acknowledged == before;
            let (after, wait) = self
                .shared
                .changed
                .wait_timeout_while(state, self.patience, is_same)
                .unwrap_or_else(PoisonError::into_inner);
            state = after;
            if let Some(ending) = state.ended.take() {
                return ending;
            }
            if wait.timed_out() {
                state.abandoned = true;
                let silent = || "the tracking server does not answer in time".to_owned();
                return Ending::Later(state.failure.take().unwrap_or_else(silent));
            }
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, sender: &mut Sender, pace: Pace) -> Ending {
        let mut backoff = Backoff::new(pace.first_retry, pace.last_retry);
        let mut interval = pace.interval.min(FIRST_INTERVAL);
        loop {
            let (was_ending, abandoned) = {
                let state = self.state();
                (state.ending, state.abandoned)
            };
            if abandoned {
                return Ending::Later("given up".to_owned());
            }
            match sender.step() {
                Ok(step) => {
                    backoff.reset();
                    self.acknowledge();
                    match step {
                        Step::Done => return Ending::Done,
                        Step::More => {}
                        Step::Idle => {
                            self.wait(interval, was_ending);
                            interval = (interval * 2).min(pace.interval);
                        }
                    }
                }
                Err(failure) if failure.is_passing() => {
                    tracing::debug!("tracking: {failure}");
                    let wait = match &failure {
                        Failure::Busy {
                            after: Some(after), ..
                        } => *after,
                        _ => backoff.next(share()),
                    };
                    let is_gone = matches!(failure, Failure::Unreachable(_));
                    if was_ending && (is_gone || wait >= pace.patience) {
                        return Ending::Later(failure.to_string());
                    }
                    self.state().failure = Some(failure.to_string());
                    self.wait(wait, was_ending);
                }
                Err(failure) => {
                    let message = failure.to_string();
                    // If that cannot be written either, the message is all there is.
                    let _ = sender.set_refused(Some(message.clone()));
                    return Ending::Refused(message);
                }
            }
        }
    }

    fn acknowledge(&self) {
        let mut state = self.state();
        state.acknowledged += 1;
        state.failure = None;
        self.changed.notify_all();
    }

    /// Waits; no longer than until the end of the run, if that was not known before.
    fn wait(&self, time: Duration, was_ending: bool) {
        let is_same = |state: &mut State| state.ending == was_ending;
        drop(self.changed.wait_timeout_while(self.state(), time, is_same));
    }
}

/// Something between 0 and 1 that differs from process to process.
pub fn share() -> f64 {
    f64::from(jiff::Timestamp::now().subsec_nanosecond().unsigned_abs() % 1_000_000) / 1e6
}
