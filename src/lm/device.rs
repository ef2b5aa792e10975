//! Where and in which precision a model runs, and the one-time set-up of libtorch.

use std::str::FromStr;
use std::sync::Once;
use std::thread::available_parallelism;

use tch::{Cuda, Device, Kind};

use super::LmError;

/// What the user asked for: `auto` (the first GPU, else the CPU), `cpu`, `cuda` or `cuda:N`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    #[default]
    Auto,
    Cpu,
    Cuda(usize),
}

/// What the user asked for: `auto` (bf16 where the hardware multiplies it, else f32), `f32` or `bf16`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DtypeChoice {
    #[default]
    Auto,
    F32,
    Bf16,
}

/// The device and element kind that dense weights and activations have.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Placement {
    pub device: Device,
    pub kind: Kind,
}

impl FromStr for DeviceChoice {
    type Err = LmError;

    fn from_str(text: &str) -> Result<Self, LmError> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|index| index.parse().ok())
                .map(Self::Cuda)
                .ok_or_else(|| LmError::Device {
                    device: text.to_owned(),
                    reason: "it is not the name of a device".to_owned(),
                }),
        }
    }
}

impl FromStr for DtypeChoice {
    type Err = LmError;

    fn from_str(text: &str) -> Result<Self, LmError> {
        match text {
            "auto" => Ok(Self::Auto),
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            _ => Err(LmError::Dtype(text.to_owned())),
        }
    }
}

impl Placement {
    /// Resolves the user's choices on this machine.
    ///
    /// # Errors
    /// [`LmError::Device`] when a GPU was asked for that is not there.
    pub fn resolve(device: DeviceChoice, dtype: DtypeChoice) -> Result<Self, LmError> {
        prepare();
        let device = match device {
            DeviceChoice::Cpu => Device::Cpu,
            DeviceChoice::Auto => Device::cuda_if_available(),
            DeviceChoice::Cuda(index) => {
                let count = if Cuda::is_available() {
                    Cuda::device_count()
                } else {
                    0
                };
                if index as i64 >= count {
                    let reason = format!("{count} CUDA devices are visible");
                    return Err(LmError::Device {
                        device: format!("cuda:{index}"),
                        reason,
                    });
                }
                Device::Cuda(index)
            }
        };
        let kind = match dtype {
            DtypeChoice::F32 => Kind::Float,
            DtypeChoice::Bf16 => Kind::BFloat16,
            DtypeChoice::Auto if device.is_cuda() || cpu_multiplies_bf16() => Kind::BFloat16,
            DtypeChoice::Auto => Kind::Float,
        };
        if device == Device::Cpu {
            keep_freed_memory();
        }
        Ok(Self { device, kind })
    }

    pub fn is_cpu(&self) -> bool {
        self.device == Device::Cpu
    }

    /// Whether libtorch has flash attention for tensors placed so.
    pub(super) fn flash(&self) -> bool {
        self.kind == Kind::BFloat16
            && super::cuda::capability(self.device).is_some_and(|capability| capability >= (8, 0))
    }
}

/// Sets libtorch up before its first use; later calls do nothing.
///
/// The linker drops `libtorch_cuda.so` because no symbol names it, so it is loaded here by hand. Where it is absent the
/// CPU build of libtorch goes on alone, which is why a failure is not an error.
pub(crate) fn prepare() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        #[expect(
            unsafe_code,
            reason = "dlopen only runs the library's own initialisers, as the linker would have"
        )]
        unsafe {
            libc::dlopen(
                c"libtorch_cuda.so".as_ptr(),
                libc::RTLD_NOW | libc::RTLD_GLOBAL,
            );
        }
        let cores = available_parallelism().map_or(1, |cores| cores.get());
        tch::set_num_threads(i32::try_from(cores).unwrap_or(1));
    });
}

/// Has the C library keep what tensors free for the next ones, as libtorch itself does for a GPU.
///
/// Its own choice gives every tensor of some megabytes back to the system at once. Each layer then pays a page fault
/// for every 4 KiB it touches, which took a quarter of a training step.
fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        #[expect(unsafe_code, reason = "mallopt only sets numbers of the allocator")]
        unsafe {
            libc::mallopt(libc::M_MMAP_MAX, 0);
            // -1: never.
            libc::mallopt(libc::M_TRIM_THRESHOLD, -1);
            libc::mallopt(libc::M_TOP_PAD, 64 << 20);
        }
    }
}

fn cpu_multiplies_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        // AMX has no stable feature name; leaf 7 sub-leaf 0 EDX bit 22 is AMX-BF16, sub-leaf 1 EAX bit 5 AVX512-BF16.
        use std::arch::x86_64::{__cpuid_count, __get_cpuid_max};
        #[allow(
            unused_unsafe,
            reason = "cpuid became a safe function in a later release of Rust"
        )]
        #[expect(
            unsafe_code,
            reason = "every x86-64 processor has the cpuid instruction"
        )]
        unsafe {
            __get_cpuid_max(0).0 >= 7
                && (__cpuid_count(7, 1).eax >> 5 & 1 == 1 || __cpuid_count(7, 0).edx >> 22 & 1 == 1)
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_names() {
        assert_eq!("auto".parse::<DeviceChoice>().unwrap(), DeviceChoice::Auto);
        assert_eq!(
            "cuda:3".parse::<DeviceChoice>().unwrap(),
            DeviceChoice::Cuda(3)
        );
        assert_eq!("bf16".parse::<DtypeChoice>().unwrap(), DtypeChoice::Bf16);
        assert!("cuda:x".parse::<DeviceChoice>().is_err());
        assert!("fp16".parse::<DtypeChoice>().is_err());
    }

    #[test]
    fn absent_gpu_is_an_error() {
        let error = Placement::resolve(DeviceChoice::Cuda(4096), DtypeChoice::Auto).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("device `cuda:4096` cannot be used: "),
            "{error}"
        );
    }

    #[test]
    fn explicit_dtype_wins() {
        let placement = Placement::resolve(DeviceChoice::Cpu, DtypeChoice::F32).unwrap();
        assert_eq!(
            placement,
            Placement {
                device: Device::Cpu,
                kind: Kind::Float
            }
        );
    }
}
