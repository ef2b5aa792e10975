//! Which GPUs a run may use.

use std::path::Path;

/// Positions among the visible GPUs: those of `CUDA_VISIBLE_DEVICES`, else all that the driver shows.
pub fn visible() -> Vec<u32> {
    let count = match std::env::var("CUDA_VISIBLE_DEVICES") {
        Ok(list) => visible_in(&list).min(present(Path::new("/proc/driver/nvidia/gpus"))),
        Err(_) => present(Path::new("/proc/driver/nvidia/gpus")),
    };
    (0..count).collect()
}

/// CUDA stops at the first entry that names no device, such as `-1`.
fn visible_in(list: &str) -> u32 {
    list.split(',')
        .map(str::trim)
        .take_while(|name| !name.is_empty() && !name.starts_with('-'))
        .count() as u32
}

fn present(folder: &Path) -> u32 {
    std::fs::read_dir(folder).map_or(0, |entries| entries.flatten().count() as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_ends_at_the_first_that_is_none() {
        assert_eq!(
            [
                visible_in(""),
                visible_in("0"),
                visible_in("0,1"),
                visible_in("-1,0"),
                visible_in("GPU-4e0c, 1")
            ],
            [0, 1, 2, 0, 2]
        );
    }

    #[test]
    fn without_a_driver_there_is_none() {
        assert_eq!(present(Path::new("/proc/driver/no-such-driver")), 0);
    }
}
