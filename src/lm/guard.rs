//! Turns errors raised inside tensor code into [`LmError`]s.
//!
//! Layers call tch's infallible methods, which panic with the `TchError` when libtorch refuses (above all, out of
//! memory): formulas stay readable, and whoever starts the work decides here what a failure means.

use std::any::Any;
use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

use super::LmError;

thread_local! {
    static DEPTH: Cell<u32> = const { Cell::new(0) };
}

/// Runs `work`; a libtorch error inside it becomes [`LmError::Torch`]. Any other panic goes on.
///
/// # Errors
/// What `work` returns, or the libtorch error.
pub fn guard<T>(work: impl FnOnce() -> Result<T, LmError>) -> Result<T, LmError> {
    silence_expected_panics();
    DEPTH.set(DEPTH.get() + 1);
    let result = panic::catch_unwind(AssertUnwindSafe(work));
    DEPTH.set(DEPTH.get() - 1);
    result.unwrap_or_else(|payload| match torch_message(payload.as_ref()) {
        Some(message) => Err(LmError::Torch(message)),
        None => panic::resume_unwind(payload),
    })
}

/// The first line of the libtorch error that a panic carries; the rest is a C++ stack trace.
fn torch_message(payload: &(dyn Any + Send)) -> Option<String> {
    let text = payload.downcast_ref::<String>()?;
    let (_, message) = text.split_once("called `Result::unwrap()` on an `Err` value: Torch(\"")?;
    Some(
        message
            .split("\\n")
            .next()
            .unwrap_or_default()
            .trim_end_matches("\")")
            .to_owned(),
    )
}

/// Keeps the default panic report for real panics only.
fn silence_expected_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let report = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if DEPTH.get() == 0 || torch_message(info.payload()).is_none() {
                report(info);
            }
        }));
    });
}

#[cfg(test)]
mod tests {
    use tch::{Kind, Tensor};

    use super::*;

    #[test]
    fn libtorch_errors_become_values() {
        let error = guard(|| {
            let a = Tensor::zeros([2, 3], tch::kind::FLOAT_CPU);
            Ok(a.matmul(&a))
        })
        .unwrap_err();
        insta::assert_snapshot!(error, @"libtorch: mat1 and mat2 shapes cannot be multiplied (2x3 and 2x3)");
        assert!(!error.is_out_of_memory());
    }

    #[test]
    fn out_of_memory_is_recognised() {
        let huge = || {
            Ok(Tensor::zeros(
                [1 << 30, 1 << 20],
                (Kind::Double, tch::Device::Cpu),
            ))
        };
        let error = guard(huge).unwrap_err();
        assert!(error.is_out_of_memory(), "{error}");
    }

    #[test]
    fn other_panics_go_on() {
        let result = panic::catch_unwind(|| guard::<()>(|| panic!("a bug")));
        assert_eq!(
            *result.unwrap_err().downcast_ref::<&str>().unwrap(),
            "a bug"
        );
    }
}
