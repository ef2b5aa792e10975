//! The GPU as the driver knows it.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, PoisonError};

use cudarc::driver::{result, sys};
use tch::{Cuda, Device};

use crate::lm::LmError;

/// Major and minor number of a GPU's generation, such as (9, 0).
type Capability = (i32, i32);

/// The compute capability of a GPU; None for other devices.
pub fn capability(device: Device) -> Option<Capability> {
    static KNOWN: LazyLock<Mutex<HashMap<usize, Option<Capability>>>> =
        LazyLock::new(Mutex::default);
    let Device::Cuda(index) = device else {
        return None;
    };
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    *known.entry(index).or_insert_with(|| ask(index))
}

fn ask(index: usize) -> Option<Capability> {
    use sys::CUdevice_attribute_enum as Attribute;
    // cudarc panics where there is no driver library.
    if !Cuda::is_available() {
        return None;
    }
    result::init().ok()?;
    let device = result::device::get(i32::try_from(index).ok()?).ok()?;
    #[expect(unsafe_code, reason = "the device comes from the driver")]
    let attribute = |of| unsafe { result::device::get_attribute(device, of) }.ok();
    Some((
        attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
        attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
    ))
}

/// Makes the context that libtorch uses on a GPU the current one of this thread.
///
/// # Errors
/// [`LmError::Kernel`] where there is no such GPU.
pub fn enter(index: usize) -> Result<(), LmError> {
    let failed = |error: result::DriverError| LmError::kernel("context", error);
    if !Cuda::is_available() {
        return Err(LmError::kernel("context", "no GPU is visible"));
    }
    result::init().map_err(failed)?;
    let device = result::device::get(i32::try_from(index).unwrap_or(i32::MAX)).map_err(failed)?;
    #[expect(
        unsafe_code,
        reason = "the reference is held as long as the process lives, as libtorch does"
    )]
    unsafe {
        let context = result::primary_ctx::retain(device).map_err(failed)?;
        result::ctx::set_current(context).map_err(failed)
    }
}
