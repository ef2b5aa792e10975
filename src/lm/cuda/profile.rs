//! Where the time of a step goes on the GPU: events before and after each piece of work.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ptr;

use cudarc::driver::{result, sys};

use crate::lm::LmError;

/// What a piece of work belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    Dequantise,
    Gemm,
    Attention,
    Elementwise,
    Lora,
    Head,
    Optimizer,
}

impl Part {
    pub fn name(self) -> &'static str {
        match self {
            Self::Dequantise => "dequantise",
            Self::Gemm => "gemm",
            Self::Attention => "attention",
            Self::Elementwise => "elementwise",
            Self::Lora => "lora",
            Self::Head => "head",
            Self::Optimizer => "optimizer",
        }
    }
}

/// Seconds on the GPU by part, and those in which it waited for work in between.
#[derive(Clone, Debug, Default)]
pub struct PartTimes {
    pub parts: BTreeMap<Part, f64>,
    pub idle: f64,
}

/// Collects events on libtorch's stream, which is the default one.
#[derive(Default)]
pub struct Profile {
    events: RefCell<Vec<(Part, sys::CUevent, sys::CUevent)>>,
}

impl Profile {
    /// Runs `work` between two events.
    pub fn time<T>(&self, part: Part, work: impl FnOnce() -> T) -> T {
        let start = mark();
        let result = work();
        if let (Some(start), Some(end)) = (start, mark()) {
            self.events.borrow_mut().push((part, start, end));
        }
        result
    }

    /// The times of all work since the last call; waits for it.
    ///
    /// # Errors
    /// [`LmError::Kernel`].
    pub fn take(&self) -> Result<PartTimes, LmError> {
        let events = self.events.take();
        let mut times = PartTimes::default();
        let (Some(first), Some(last)) = (events.first(), events.last()) else {
            return Ok(times);
        };
        let failed = |error| LmError::kernel("profile", error);
        #[expect(unsafe_code, reason = "all events were recorded")]
        unsafe {
            result::event::synchronize(last.2).map_err(failed)?;
            let whole = result::event::elapsed(first.1, last.2).map_err(failed)?;
            let mut busy = 0.0;
            for &(part, start, end) in &events {
                let seconds =
                    f64::from(result::event::elapsed(start, end).map_err(failed)?) / 1000.0;
                *times.parts.entry(part).or_default() += seconds;
                busy += seconds;
            }
            times.idle = (f64::from(whole) / 1000.0 - busy).max(0.0);
            for (_, start, end) in events {
                result::event::destroy(start).map_err(failed)?;
                result::event::destroy(end).map_err(failed)?;
            }
        }
        Ok(times)
    }
}

/// A new event at the end of what was launched so far.
fn mark() -> Option<sys::CUevent> {
    let event = result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT).ok()?;
    #[expect(
        unsafe_code,
        reason = "the event is new and the stream the default one"
    )]
    unsafe { result::event::record(event, ptr::null_mut()) }.ok()?;
    Some(event)
}
