//! How much memory a device has left.

use tch::Device;

/// Bytes that can be allocated without pushing anything else out, where the system says so.
pub(super) fn available(device: Device) -> Option<u64> {
    match device {
        Device::Cuda(_) => cuda_free(),
        _ => std::fs::read_to_string("/proc/meminfo")
            .ok()
            .and_then(|text| mem_available(&text)),
    }
}

fn mem_available(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// Free bytes of the current CUDA device, asked from the runtime library that libtorch has loaded.
fn cuda_free() -> Option<u64> {
    type MemGetInfo = unsafe extern "C" fn(*mut usize, *mut usize) -> i32;
    #[expect(unsafe_code, reason = "the CUDA runtime is a C library")]
    unsafe {
        let symbol = libc::dlsym(libc::RTLD_DEFAULT, c"cudaMemGetInfo".as_ptr());
        if symbol.is_null() {
            return None;
        }
        let call: MemGetInfo = std::mem::transmute(symbol);
        let (mut free, mut total) = (0, 0);
        (call(&mut free, &mut total) == 0).then_some(free as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_linux_reports() {
        let text = "MemTotal: 100 kB\nMemAvailable:   12 kB\n";
        assert_eq!(mem_available(text), Some(12 * 1024));
        assert_eq!(mem_available("MemTotal: 100 kB\n"), None);
    }
}
