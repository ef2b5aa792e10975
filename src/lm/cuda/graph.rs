//! A stream of our own on which libtorch works too, and recorded work that is replayed with one launch.

use std::collections::HashMap;
use std::ffi::c_void;
use std::ptr;
use std::sync::{LazyLock, Mutex, PoisonError};

use cudarc::driver::{result, sys};
use tch::Device;

use super::context;
use crate::lm::LmError;

const NAME: &str = "stream";

type CreateGuard = unsafe extern "C" fn(*mut c_void, i32, *mut *mut c_void) -> i32;
type DeleteGuard = unsafe extern "C" fn(*mut c_void) -> i32;

/// While this lives, libtorch launches on a stream that can be recorded, which its default stream cannot.
///
/// The stream waits for the default one and the other way round, so work before and after needs no synchronisation. It
/// lives as long as the process: libtorch's allocator keeps memory by stream.
pub struct OwnStream {
    stream: sys::CUstream,
    guard: *mut c_void,
}

/// A handle of the driver, usable by any thread.
struct Shared(sys::CUstream);
#[expect(
    unsafe_code,
    reason = "handles of the driver may be used by any thread"
)]
unsafe impl Send for Shared {}

static STREAMS: LazyLock<Mutex<HashMap<usize, Shared>>> = LazyLock::new(Mutex::default);

impl OwnStream {
    /// # Errors
    /// [`LmError::Kernel`] where the driver or libtorch refuses.
    pub fn enter(device: Device) -> Result<Self, LmError> {
        let Device::Cuda(index) = device else {
            return Err(LmError::kernel(NAME, "the device is no GPU"));
        };
        context::enter(index)?;
        let mut streams = STREAMS.lock().unwrap_or_else(PoisonError::into_inner);
        let stream = match streams.get(&index) {
            Some(stream) => stream.0,
            None => {
                let mut stream = ptr::null_mut();
                #[expect(unsafe_code, reason = "the driver is a C library")]
                unsafe { sys::cuStreamCreate(&mut stream, 0) }
                    .result()
                    .map_err(|error| LmError::kernel(NAME, error))?;
                streams.insert(index, Shared(stream));
                stream
            }
        };
        let create = symbol(c"aoti_torch_create_cuda_stream_guard")
            .ok_or_else(|| LmError::kernel(NAME, "libtorch cannot switch streams"))?;
        let mut guard = ptr::null_mut();
        let index = i32::try_from(index).unwrap_or(i32::MAX);
        #[expect(
            unsafe_code,
            reason = "a function of libtorch's C interface, by its signature there"
        )]
        let code = unsafe {
            let create: CreateGuard = std::mem::transmute(create);
            create(stream.cast(), index, &mut guard)
        };
        match code {
            0 => Ok(Self { stream, guard }),
            _ => Err(LmError::kernel(NAME, "libtorch does not take the stream")),
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
