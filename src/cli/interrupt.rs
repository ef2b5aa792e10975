//! Ctrl-C: once asks running nodes to stop at a safe point, twice ends the process.

use std::sync::atomic::{AtomicBool, Ordering};

use super::error::CliError;
use super::output::Output;
use crate::engine::CancelToken;

/// From now on the first signal (interrupt, terminate or hang-up) cancels and the second ends the process with code 130.
/// `leave` is called before that.
pub fn cancel_on_signal(
    cancel: &CancelToken,
    output: Output,
    leave: impl Fn() + Send + 'static,
) -> Result<(), CliError> {
    let cancel = cancel.clone();
    let asked = AtomicBool::new(false);
    let handler = move || {
        if asked.swap(true, Ordering::SeqCst) {
            leave();
            std::process::exit(130);
        }
        cancel.cancel();
        output.tell("stopping: nothing new is started and running nodes save their progress; once more to end at once");
    };
    handle(handler)
}

/// From now on every signal cancels, for a process whose work is worth the time it takes to save it.
pub fn cancel_on_any_signal(cancel: &CancelToken) -> Result<(), CliError> {
    let cancel = cancel.clone();
    handle(move || cancel.cancel())
}

fn handle(handler: impl FnMut() + Send + 'static) -> Result<(), CliError> {
    ctrlc::set_handler(handler)
        .map_err(|error| CliError::failed(format!("signals cannot be handled: {error}"), None))
}
