//! The functions of `native.cpp`: what tch does not expose of libtorch.

use std::ffi::{CStr, c_char, c_int};
use std::ptr;

use tch::{Device, Tensor};
use torch_sys::C_tensor;

use crate::lm::LmError;

#[expect(unsafe_code, reason = "declares what native.cpp defines")]
unsafe extern "C" {
    fn flow_flash_attention(
        q: *const C_tensor,
        k: *const C_tensor,
        v: *const C_tensor,
        cumulative_q: *const C_tensor,
        cumulative_k: *const C_tensor,
        longest_q: i64,
        longest_k: i64,
        causal: c_int,
        results: *mut *mut C_tensor,
    ) -> *mut c_char;
    fn flow_cudnn_attention(
        q: *const C_tensor,
        k: *const C_tensor,
        v: *const C_tensor,
        gradient: c_int,
        results: *mut *mut C_tensor,
    ) -> *mut c_char;
    fn flow_deterministic(on: c_int) -> c_int;
    fn flow_memory(device: c_int, bytes: *mut i64) -> *mut c_char;
    fn flow_reset_memory_peak(device: c_int) -> *mut c_char;
    fn flow_empty_cache() -> *mut c_char;
}

/// What an attention forward pass leaves for its backward pass.
pub struct Attention {
    pub output: Tensor,
    pub logsumexp: Tensor,
    /// Opaque to us: the state of a generator that dropout would draw from.
    pub random: [Tensor; 2],
}

/// Flash attention (Dao 2023, arXiv:2307.08691) over packed sequences. `q`: [Tq, heads, D]; `k`, `v`: [Tk, kv_heads, D];
/// cumulative lengths: i32 [B + 1]. Where a sequence has more keys than queries, its queries are the last positions.
/// The output is [Tq, heads, D].
///
/// # Errors
/// What libtorch refuses, out of memory included.
pub fn flash_attention(
    [q, k, v]: [&Tensor; 3],
    cumulative: [&Tensor; 2],
    longest: [i64; 2],
    causal: bool,
) -> Result<Attention, LmError> {
    let mut results = [ptr::null_mut(); 4];
    #[expect(unsafe_code, reason = "all pointers are to living tensors")]
    check(unsafe {
        flow_flash_attention(
            q.as_ptr(),
            k.as_ptr(),
            v.as_ptr(),
            cumulative[0].as_ptr(),
            cumulative[1].as_ptr(),
            longest[0],
            longest[1],
            c_int::from(causal),
            results.as_mut_ptr(),
        )
    })?;
    Ok(take(results))
}

/// cuDNN's causal attention. `q`: [B, heads, S, D]; `k`, `v`: [B, kv_heads, S, D], of any strides. `gradient`: a backward
/// pass follows.
///
/// # Errors
/// What libtorch refuses, out of memory included.
pub fn cudnn_attention([q, k, v]: [&Tensor; 3], gradient: bool) -> Result<Attention, LmError> {
    let mut results = [ptr::null_mut(); 4];
    #[expect(unsafe_code, reason = "all pointers are to living tensors")]
    check(unsafe {
        flow_cudnn_attention(
            q.as_ptr(),
            k.as_ptr(),
            v.as_ptr(),
            c_int::from(gradient),
            results.as_mut_ptr(),
        )
    })?;
    Ok(take(results))
}

/// Runs `work` with libtorch's deterministic kernels if `on`.
pub fn deterministic<T>(on: bool, work: impl FnOnce() -> T) -> T {
    if !on {
        return work();
    }
    #[expect(unsafe_code, reason = "sets a flag of libtorch")]
    let before = unsafe { flow_deterministic(1) };
    let result = work();
    #[expect(unsafe_code, reason = "sets a flag of libtorch")]
    unsafe {
        flow_deterministic(before)
    };
    result
}

/// Bytes of device memory according to libtorch's allocator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryPeak {
    /// Held by tensors now.
    pub now: u64,
    /// Taken from the driver now, blocks kept for later use included.
    pub taken: u64,
    /// The most that tensors held at once since [`reset_memory_peak`].
    pub allocated: u64,
    /// The most that was taken from the driver, blocks kept for later use included.
    pub reserved: u64,
}

impl MemoryPeak {
    /// Kept for later use now.
    pub fn cached(&self) -> u64 {
        self.taken.saturating_sub(self.now)
    }
}

/// None without a GPU.
pub fn memory_peak(device: Device) -> Option<MemoryPeak> {
    let mut bytes = [0; 4];
    let index = cuda_index(device)?;
    #[expect(unsafe_code, reason = "the array has room for all numbers")]
    check(unsafe { flow_memory(index, bytes.as_mut_ptr()) }).ok()?;
    let [now, allocated, taken, reserved] = bytes.map(|number| number as u64);
    Some(MemoryPeak {
        now,
        taken,
        allocated,
        reserved,
    })
}

/// Gives memory that no tensor holds back to the driver, from which others can take it.
pub fn empty_cache() {
    // Without an allocator there is nothing to give back.
    #[expect(unsafe_code, reason = "calls into the allocator")]
    let _ = check(unsafe { flow_empty_cache() });
}

/// Starts a new measurement of [`memory_peak`] and gives unused blocks back to the driver.
pub fn reset_memory_peak(device: Device) {
    if let Some(index) = cuda_index(device) {
        // Without an allocator there is no peak to reset.
        #[expect(unsafe_code, reason = "calls into the allocator")]
        let _ = check(unsafe { flow_empty_cache() })
            .and_then(|()| check(unsafe { flow_reset_memory_peak(index) }));
    }
}

fn cuda_index(device: Device) -> Option<c_int> {
    match device {
        Device::Cuda(index) => c_int::try_from(index).ok(),
        _ => None,
    }
}

/// The error that a function of ours in C++ returned, which is null or a string of malloc's that is freed here.
///
/// # Errors
/// [`LmError::Torch`] with that text.
pub(in crate::lm) fn check(text: *mut c_char) -> Result<(), LmError> {
    if text.is_null() {
        return Ok(());
    }
    #[expect(unsafe_code, reason = "it is null or a string of malloc")]
    let message = unsafe {
        let message = CStr::from_ptr(text).to_string_lossy().into_owned();
        libc::free(text.cast());
        message
    };
    // The rest is a C++ stack trace.
    Err(LmError::Torch(
        message.lines().next().unwrap_or_default().to_owned(),
    ))
}

fn take(results: [*mut C_tensor; 4]) -> Attention {
    #[expect(unsafe_code, reason = "native.cpp allocated them for us")]
    let [output, logsumexp, first, second] =
        results.map(|result| unsafe { Tensor::from_ptr(result) });
    Attention {
        output,
        logsumexp,
        random: [first, second],
    }
}
