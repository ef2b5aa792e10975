//! A stream of our own on which libtorch works too, and recorded work that is replayed with one launch.

use std::cell::RefCell;
use std::ffi::c_void;
use std::ptr;
use std::sync::{Mutex, PoisonError};

use cudarc::driver::{result, sys};
use tch::Device;

use super::context;
use super::module::current_stream;
use crate::lm::LmError;

const NAME: &str = "stream";

type CreateGuard = unsafe extern "C" fn(*mut c_void, i32, *mut *mut c_void) -> i32;
type DeleteGuard = unsafe extern "C" fn(*mut c_void) -> i32;

/// While this lives, libtorch launches on a stream that can be recorded, which its default stream cannot.
///
/// It begins after what was launched on the stream used before, and what is launched there afterwards waits for it. Each
/// thread has a stream of its own, which is not coupled with the default one otherwise: other threads may launch and
/// allocate while this one records. A stream lives as long as the process, because libtorch's allocator keeps memory by
/// stream; those of threads that have ended serve others.
pub struct OwnStream {
    stream: sys::CUstream,
    /// The stream used before.
    outer: sys::CUstream,
    event: sys::CUevent,
    guard: *mut c_void,
}

/// A handle of the driver, usable by any thread.
struct Shared(sys::CUstream);
#[expect(
    unsafe_code,
    reason = "handles of the driver may be used by any thread"
)]
unsafe impl Send for Shared {}

/// Streams by device that no thread uses.
static FREE: Mutex<Vec<(usize, Shared)>> = Mutex::new(Vec::new());

/// The streams of a thread, by device.
#[derive(Default)]
struct OfThread(Vec<(usize, Shared)>);

impl Drop for OfThread {
    fn drop(&mut self) {
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        free.append(&mut self.0);
    }
}

thread_local! {
    static STREAMS: RefCell<OfThread> = RefCell::default();
}

fn failed(error: result::DriverError) -> LmError {
    LmError::kernel(NAME, error)
}

/// The stream of this thread on a device.
fn of_thread(index: usize) -> Result<sys::CUstream, LmError> {
    STREAMS.with_borrow_mut(|OfThread(streams)| {
        if let Some((_, stream)) = streams.iter().find(|(of, _)| *of == index) {
            return Ok(stream.0);
        }
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        let stream = match free.iter().position(|(of, _)| *of == index) {
            Some(at) => free.swap_remove(at).1,
            None => {
                let mut stream = ptr::null_mut();
                let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
                #[expect(unsafe_code, reason = "the driver is a C library")]
                unsafe { sys::cuStreamCreate(&mut stream, flags) }
                    .result()
                    .map_err(failed)?;
                Shared(stream)
            }
        };
        let handle = stream.0;
        streams.push((index, stream));
        Ok(handle)
    })
}

impl OwnStream {
    /// # Errors
    /// [`LmError::Kernel`] where the driver or libtorch refuses.
    pub fn enter(device: Device) -> Result<Self, LmError> {
        let Device::Cuda(index) = device else {
            return Err(LmError::kernel(NAME, "the device is no GPU"));
        };
        context::enter(index)?;
        let stream = of_thread(index)?;
        let create = symbol(c"aoti_torch_create_cuda_stream_guard")
            .ok_or_else(|| LmError::kernel(NAME, "libtorch cannot switch streams"))?;
        let mut guard = ptr::null_mut();
        let index = i32::try_from(index).unwrap_or(i32::MAX);
        let outer = current_stream(index);
        let mut event = ptr::null_mut();
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
        #[expect(unsafe_code, reason = "the driver is a C library")]
        unsafe { sys::cuEventCreate(&mut event, flags) }
            .result()
            .map_err(failed)?;
        #[expect(
            unsafe_code,
            reason = "a function of libtorch's C interface, by its signature there"
        )]
        let code = unsafe {
            let create: CreateGuard = std::mem::transmute(create);
            create(stream.cast(), index, &mut guard)
        };
        if code != 0 {
            return Err(LmError::kernel(NAME, "libtorch does not take the stream"));
        }
        let own = Self {
            stream,
            outer,
            event,
            guard,
        };
        own.order(outer, stream)?;
        Ok(own)
    }

    /// What is launched on `second` from now on waits for what has been launched on `first`.
    fn order(&self, first: sys::CUstream, second: sys::CUstream) -> Result<(), LmError> {
        #[expect(unsafe_code, reason = "all handles live")]
        unsafe {
            sys::cuEventRecord(self.event, first)
                .result()
                .and_then(|()| sys::cuStreamWaitEvent(second, self.event, 0).result())
                .map_err(failed)
        }
    }

    /// Records what `work` launches instead of running it. `work` must use memory that stays where it is.
    ///
    /// # Errors
    /// What `work` returns; [`LmError::Kernel`] where it did something that cannot be recorded.
    pub fn record(&self, work: impl FnOnce() -> Result<(), LmError>) -> Result<Graph, LmError> {
        let failed = |error: result::DriverError| LmError::kernel("graph", error);
        // Relaxed: libtorch may ask the driver for memory meanwhile, which is not recorded.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        #[expect(unsafe_code, reason = "the driver is a C library; the stream lives")]
        unsafe {
            sys::cuStreamBeginCapture_v2(self.stream, mode)
                .result()
                .map_err(failed)?;
            let done = work();
            let mut graph = ptr::null_mut();
            let ended = sys::cuStreamEndCapture(self.stream, &mut graph).result();
            done?;
            ended.map_err(failed)?;
            let mut executable = ptr::null_mut();
            let made = sys::cuGraphInstantiateWithFlags(&mut executable, graph, 0).result();
            sys::cuGraphDestroy(graph).result().map_err(failed)?;
            made.map_err(failed)?;
            Ok(Graph { executable })
        }
    }

    /// Replays recorded work after what was launched before.
    ///
    /// # Errors
    /// [`LmError::Kernel`].
    pub fn replay(&self, graph: &Graph) -> Result<(), LmError> {
        #[expect(unsafe_code, reason = "both handles live")]
        unsafe { sys::cuGraphLaunch(graph.executable, self.stream) }
            .result()
            .map_err(|error| LmError::kernel("graph", error))
    }
}

impl Drop for OwnStream {
    fn drop(&mut self) {
        // Whatever the driver could refuse here it reports at the next launch.
        let _ = self.order(self.stream, self.outer);
        #[expect(
            unsafe_code,
            reason = "the event is ours; the driver keeps it as long as it is waited for"
        )]
        let _ = unsafe { sys::cuEventDestroy_v2(self.event) };
        let Some(delete) = symbol(c"aoti_torch_delete_cuda_stream_guard") else {
            return;
        };
        #[expect(
            unsafe_code,
            reason = "a function of libtorch's C interface, by its signature there"
        )]
        unsafe {
            let delete: DeleteGuard = std::mem::transmute(delete);
            delete(self.guard);
        }
    }
}

/// Recorded work.
pub struct Graph {
    executable: sys::CUgraphExec,
}

#[expect(
    unsafe_code,
    reason = "handles of the driver may be used by any thread"
)]
unsafe impl Send for Graph {}

impl Drop for Graph {
    fn drop(&mut self) {
        // The driver keeps it until the replays under way are done.
        #[expect(unsafe_code, reason = "the handle is ours")]
        let _ = unsafe { sys::cuGraphExecDestroy(self.executable) };
    }
}

fn symbol(name: &std::ffi::CStr) -> Option<*mut c_void> {
    #[expect(unsafe_code, reason = "asks the loader for a symbol")]
    let symbol = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    (!symbol.is_null()).then_some(symbol)
}
