//! Compiled kernels on a device and how they are launched: on libtorch's current stream, over the memory of tensors.

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::ptr;
use std::sync::{LazyLock, Mutex, PoisonError};

use cudarc::driver::{result, sys};
use tch::{Cuda, Device, Kind, Tensor};

use super::compiler::{Defines, Source, compile};
use crate::lm::LmError;

/// The kernels of one source, compiled for one device and set of sizes. Kept for the life of the process.
pub struct Module {
    name: &'static str,
    device: GpuContext,
    handle: sys::CUmodule,
}

/// One kernel, ready to launch.
#[derive(Clone, Copy)]
pub struct Kernel {
    name: &'static str,
    device: GpuContext,
    function: sys::CUfunction,
}

/// The context that libtorch uses on a device.
#[derive(Clone, Copy)]
struct GpuContext {
    index: i32,
    context: sys::CUcontext,
}

#[expect(
    unsafe_code,
    reason = "handles of the driver may be used by any thread"
)]
unsafe impl Send for Module {}
#[expect(
    unsafe_code,
    reason = "handles of the driver may be used by any thread"
)]
unsafe impl Sync for Module {}
#[expect(
    unsafe_code,
    reason = "handles of the driver may be used by any thread"
)]
unsafe impl Send for Kernel {}
#[expect(
    unsafe_code,
    reason = "handles of the driver may be used by any thread"
)]
unsafe impl Sync for Kernel {}

type Key = (&'static str, usize, String);

static MODULES: LazyLock<Mutex<HashMap<Key, &'static Module>>> = LazyLock::new(Mutex::default);

impl Module {
    /// The module of `source` on `device` with `defines`, compiled at its first use.
    ///
    /// # Errors
    /// [`LmError::Kernel`] where the device is no usable GPU or the source does not compile for it.
    pub fn get(source: Source, device: Device, defines: Defines) -> Result<&'static Self, LmError> {
        let Device::Cuda(index) = device else {
            return Err(LmError::kernel(source.name, "the device is no GPU"));
        };
        let key = (source.name, index, format!("{defines:?}"));
        let mut modules = MODULES.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(module) = modules.get(&key) {
            return Ok(module);
        }
        let module = Self::load(source, index, defines)?;
        let module: &'static Self = Box::leak(Box::new(module));
        modules.insert(key, module);
        Ok(module)
    }

    fn load(source: Source, index: usize, defines: Defines) -> Result<Self, LmError> {
        // cudarc panics where there is no driver library.
        if !Cuda::is_available() {
            return Err(LmError::kernel(source.name, "no GPU is visible"));
        }
        let failed = |error: result::DriverError| LmError::kernel(source.name, error);
        let index = i32::try_from(index).unwrap_or(i32::MAX);
        result::init().map_err(failed)?;
        let device = result::device::get(index).map_err(failed)?;
        let ptx = compile(source, defines, capability(device).map_err(failed)?)?;
        #[expect(unsafe_code, reason = "the driver is a C library")]
        unsafe {
            // The context that libtorch has made; the reference is held as long as the process lives.
            let context = result::primary_ctx::retain(device).map_err(failed)?;
            result::ctx::set_current(context).map_err(failed)?;
            let handle = result::module::load_data(ptx.as_ptr().cast()).map_err(failed)?;
            Ok(Self {
                name: source.name,
                device: GpuContext { index, context },
                handle,
            })
        }
    }

    /// The kernel called `name`.
    ///
    /// # Errors
    /// [`LmError::Kernel`] where the module has none of that name.
    pub fn kernel(&self, name: &'static str) -> Result<Kernel, LmError> {
        let symbol = CString::new(name).expect("a kernel's name has no zero byte");
        #[expect(unsafe_code, reason = "the module stays loaded")]
        let function = unsafe { result::module::get_function(self.handle, symbol) }
            .map_err(|error| LmError::kernel(self.name, format!("`{name}`: {error}")))?;
        Ok(Kernel {
            name,
            device: self.device,
            function,
        })
    }
}

/// The GPU's name; None for a CPU.
pub fn gpu_name(device: Device) -> Option<String> {
    let Device::Cuda(index) = device else {
        return None;
    };
    if !Cuda::is_available() {
        return None;
    }
    result::init().ok()?;
    let device = result::device::get(i32::try_from(index).ok()?).ok()?;
    result::device::get_name(device).ok()
}

/// How many multiprocessors a GPU has.
///
/// # Errors
/// [`LmError::Kernel`] where the driver does not say.
pub fn multiprocessors(device: Device) -> Result<i64, LmError> {
    use sys::CUdevice_attribute_enum as Attribute;
    let failed = |error| LmError::kernel("driver", error);
    let Device::Cuda(index) = device else {
        return Err(LmError::kernel("driver", "the device is no GPU"));
    };
    result::init().map_err(failed)?;
    let device = result::device::get(i32::try_from(index).unwrap_or(i32::MAX)).map_err(failed)?;
    #[expect(unsafe_code, reason = "the device comes from the driver")]
    let count = unsafe {
        result::device::get_attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)
    };
    Ok(i64::from(count.map_err(failed)?))
}

fn capability(device: sys::CUdevice) -> Result<(i32, i32), result::DriverError> {
    use sys::CUdevice_attribute_enum as Attribute;
    #[expect(unsafe_code, reason = "the device comes from the driver")]
    unsafe {
        Ok((
            result::device::get_attribute(
                device,
                Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
            )?,
            result::device::get_attribute(
                device,
                Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            )?,
        ))
    }
}

/// The distance between rows of a bf16 matrix [T, n] on a GPU that kernels can read 16 bytes at a time.
pub fn bf16_rows(matrix: &Tensor) -> i64 {
    let strides = matrix.stride();
    assert_eq!(matrix.kind(), Kind::BFloat16);
    assert!(matrix.device().is_cuda() && strides.len() == 2 && strides[1] == 1);
    assert!(strides[0] % 8 == 0 && (matrix.data_ptr() as usize).is_multiple_of(16));
    strides[0]
}

/// One argument of a kernel.
#[derive(Clone, Copy)]
pub enum Argument<'a> {
    /// A pointer, or any other number of at most 8 bytes by its bits.
    Word(u64),
    /// A struct of 8-byte fields.
    Struct(&'a [u64]),
}

impl From<&Tensor> for Argument<'_> {
    fn from(tensor: &Tensor) -> Self {
        Self::Word(tensor.data_ptr() as u64)
    }
}

impl From<Option<&Tensor>> for Argument<'_> {
    /// Null where there is none.
    fn from(tensor: Option<&Tensor>) -> Self {
        Self::Word(tensor.map_or(0, |tensor| tensor.data_ptr() as u64))
    }
}

impl From<i32> for Argument<'_> {
    fn from(number: i32) -> Self {
        Self::Word(u64::from(number as u32))
    }
}

impl From<u32> for Argument<'_> {
    fn from(number: u32) -> Self {
        Self::Word(u64::from(number))
    }
}

impl From<i64> for Argument<'_> {
    /// For parameters of 4 bytes too: the low half comes first.
    fn from(number: i64) -> Self {
        Self::Word(number as u64)
    }
}

impl From<u64> for Argument<'_> {
    fn from(number: u64) -> Self {
        Self::Word(number)
    }
}

impl From<f32> for Argument<'_> {
    fn from(number: f32) -> Self {
        Self::Word(u64::from(number.to_bits()))
    }
}

impl<'a> From<&'a [u64]> for Argument<'a> {
    fn from(fields: &'a [u64]) -> Self {
        Self::Struct(fields)
    }
}

/// The most arguments of one kernel.
const ARGUMENTS: usize = 24;

impl Kernel {
    /// Launches on libtorch's current stream. The arguments must be those that the kernel declares, and the tensors
    /// behind them as large as it takes them to be.
    ///
    /// # Errors
    /// [`LmError::Kernel`] where the driver refuses.
    pub fn launch(
        &self,
        grid: [i64; 3],
        threads: u32,
        arguments: &[Argument],
    ) -> Result<(), LmError> {
        self.launch_with_shared(grid, threads, 0, arguments)
    }

    /// [`Kernel::launch`] with `shared` bytes of dynamic shared memory.
    ///
    /// # Errors
    /// As above.
    pub fn launch_with_shared(
        &self,
        grid: [i64; 3],
        threads: u32,
        shared: u32,
        arguments: &[Argument],
    ) -> Result<(), LmError> {
        if grid.contains(&0) {
            return Ok(());
        }
        let grid = grid.map(|size| u32::try_from(size).expect("a grid of sane size"));
        let mut words = [0_u64; ARGUMENTS];
        let mut pointers = [ptr::null_mut::<c_void>(); ARGUMENTS];
        for (index, argument) in arguments.iter().enumerate() {
            pointers[index] = match argument {
                Argument::Word(word) => {
                    words[index] = *word;
                    (&raw mut words[index]).cast()
                }
                Argument::Struct(fields) => fields.as_ptr().cast_mut().cast(),
            };
        }
        let failed = |error| LmError::kernel(self.name, error);
        #[expect(unsafe_code, reason = "the arguments are the caller's promise")]
        unsafe {
            if result::ctx::get_current().map_err(failed)? != Some(self.device.context) {
                result::ctx::set_current(self.device.context).map_err(failed)?;
            }
            result::launch_kernel(
                self.function,
                (grid[0], grid[1], grid[2]),
                (threads, 1, 1),
                shared,
                current_stream(self.device.index),
                &mut pointers[..arguments.len()],
            )
            .map_err(failed)
        }
    }
}

/// The stream on which libtorch launches on a device.
#[expect(unsafe_code, reason = "a function of libtorch's C interface")]
pub(super) fn current_stream(device: i32) -> sys::CUstream {
    type CurrentStream = unsafe extern "C" fn(i32, *mut *mut c_void) -> i32;
    static CALL: LazyLock<Option<CurrentStream>> = LazyLock::new(|| unsafe {
        let symbol = libc::dlsym(
            libc::RTLD_DEFAULT,
            c"aoti_torch_get_current_cuda_stream".as_ptr(),
        );
        (!symbol.is_null()).then(|| std::mem::transmute::<*mut c_void, CurrentStream>(symbol))
    });
    let mut stream = ptr::null_mut();
    if let Some(call) = *CALL {
        unsafe { call(device, &mut stream) };
    }
    stream.cast()
}
