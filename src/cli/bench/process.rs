//! The resident memory of this process and its peak, as Linux counts them; elsewhere there is none.

/// Starts counting anew; where the system does not allow it, the count goes on from the start of the process.
pub fn forget_peak() {
    // proc(5), `clear_refs`: 5 resets the peak resident set size to the current one.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// Bytes.
pub fn peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    of_status(&status, "VmHWM:")
}

/// Bytes that are held now.
pub fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    of_status(&status, "VmRSS:")
}

fn of_status(status: &str, field: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes << 10)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_peak_is_read_in_bytes() {
        let status = "Name:\tflow\nVmPeak:\t  9000 kB\nVmHWM:\t    2048 kB\n";
        assert_eq!(super::of_status(status, "VmHWM:"), Some(2 << 20));
        assert_eq!(super::of_status("Name:\tflow\n", "VmHWM:"), None);
    }
}
