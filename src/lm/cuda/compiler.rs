//! Compiles kernels with NVRTC, the run-time compiler that comes with libtorch's CUDA libraries.

use std::ffi::{CStr, CString, c_void};
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Once;

use cudarc::nvrtc::{CompileError, CompileOptions, compile_ptx_with_opts, sys};

use crate::lm::LmError;

/// A kernel source and its name in messages.
#[derive(Clone, Copy)]
pub struct Source {
    pub name: &'static str,
    pub text: &'static str,
}

/// Sizes fixed at compile time, which lets the compiler unroll over them.
pub type Defines<'a> = &'a [(&'a str, i64)];

/// Declares a [`Source`] in `kernels/`, with the headers that it takes beside `common.cuh`.
macro_rules! source {
    ($name:literal $(, $header:literal)*) => {
        $crate::lm::cuda::compiler::Source {
            name: $name,
            text: concat!(
                $(include_str!(concat!("kernels/", $header)),)*
                include_str!(concat!("kernels/", $name))
            ),
        }
    };
}
pub(super) use source;

/// PTX of `source` for compute capability `(major, minor)`, zero-terminated.
///
/// # Errors
/// [`LmError::Kernel`] with the compiler's first error, or where there is no compiler.
pub fn compile(
    source: Source,
    defines: Defines,
    capability: (i32, i32),
) -> Result<CString, LmError> {
    load_library();
    #[expect(unsafe_code, reason = "looks for the library and runs nothing of it")]
    if !unsafe { sys::is_culib_present() } {
        return Err(LmError::kernel(
            source.name,
            "there is no libnvrtc beside libtorch",
        ));
    }
    let mut text = String::new();
    for (name, value) in defines {
        let _ = writeln!(text, "#define {name} {value}");
    }
    text.push_str(include_str!("kernels/common.cuh"));
    text.push_str(source.text);
    let options = CompileOptions {
        name: Some(source.name.to_owned()),
        options: vec![
            format!(
                "--gpu-architecture=compute_{}{}",
                capability.0, capability.1
            ),
            "--std=c++17".to_owned(),
        ],
        ..CompileOptions::default()
    };
    let ptx = compile_ptx_with_opts(text, options).map_err(|error| match error {
        CompileError::CompileError { log, .. } => {
            LmError::kernel(source.name, first_error(&log.to_string_lossy()))
        }
        error => LmError::kernel(source.name, format!("{error:?}")),
    })?;
    CString::new(ptx.to_src().trim_end_matches('\0'))
        .map_err(|error| LmError::kernel(source.name, error))
}

fn first_error(log: &str) -> String {
    log.lines()
        .find(|line| line.contains("error"))
        .unwrap_or(log)
        .to_owned()
}

/// Loads NVRTC from the folder that libtorch's wheels put it into, unless the loader knows it already: the library is
/// then found by its bare name.
fn load_library() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        crate::lm::device::prepare();
        let Some(torch) = libtorch_folder() else {
            return;
        };
        let cuda = torch.join("../../nvidia/cu13/lib");
        for folder in [cuda, torch] {
            for name in ["libnvrtc-builtins.so.13.0", "libnvrtc.so.13"] {
                open(&folder.join(name));
            }
        }
    });
}

/// The folder of the libtorch that this process runs with.
fn libtorch_folder() -> Option<PathBuf> {
    #[expect(
        unsafe_code,
        reason = "asks the loader where a symbol of libtorch lies"
    )]
    let name = unsafe {
        let symbol = libc::dlsym(libc::RTLD_DEFAULT, c"aoti_torch_new_tensor_handle".as_ptr());
        let mut info: libc::Dl_info = std::mem::zeroed();
        if symbol.is_null() || libc::dladdr(symbol, &mut info) == 0 || info.dli_fname.is_null() {
            return None;
        }
        CStr::from_ptr(info.dli_fname)
    };
    let path = Path::new(std::ffi::OsStr::from_bytes(name.to_bytes()));
    path.parent().map(Path::to_owned)
}

fn open(path: &Path) -> Option<*mut c_void> {
    let path = CString::new(path.as_os_str().as_bytes()).ok()?;
    #[expect(unsafe_code, reason = "runs the initialisers of a library of CUDA")]
    let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    (!handle.is_null()).then_some(handle)
}
