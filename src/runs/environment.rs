//! The machine a run was on, as far as it explains how long things took.

use std::io::Read as _;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The machine of a run; what could not be found out is empty or 0.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Environment {
    /// `Linux 6.8.0 x86_64`.
    pub system: String,
    /// The model name of the first processor.
    pub cpu: String,
    /// Hardware threads this process may use.
    pub cores: usize,
    /// Bytes of main memory.
    pub memory: u64,
    /// Names of the NVIDIA GPUs.
    pub gpus: Vec<String>,
}

impl Environment {
    /// Looks into `/proc`; what is not there stays empty.
    pub fn look() -> Self {
        let release = read("/proc/sys/kernel/osrelease");
        let memory = field(&read("/proc/meminfo"), "MemTotal")
            .and_then(|text| text.split(' ').next()?.parse::<u64>().ok());
        Self {
            system: [
                capitalised(std::env::consts::OS),
                release.trim().to_owned(),
                std::env::consts::ARCH.to_owned(),
            ]
            .join(" "),
            cpu: field(&read("/proc/cpuinfo"), "model name").unwrap_or_default(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory: memory.unwrap_or_default() * 1024,
            gpus: gpus(),
        }
    }
}

/// The beginning of a file: the kernel writes such files as they are read, and all processors of a large machine take long.
fn read(path: &str) -> String {
    let mut bytes = Vec::new();
    if let Ok(file) = std::fs::File::open(path) {
        let _ = file.take(2048).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The value in a line `name : value`.
fn field(text: &str, name: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim().to_owned())
    })
}

fn gpus() -> Vec<String> {
    let Ok(folders) = std::fs::read_dir("/proc/driver/nvidia/gpus") else {
        return Vec::new();
    };
    let mut folders: Vec<_> = folders.flatten().map(|folder| folder.path()).collect();
    folders.sort();
    let name = |folder: std::path::PathBuf| {
        field(
            &read(folder.join("information").to_str().unwrap_or_default()),
            "Model",
        )
    };
    folders.into_iter().filter_map(name).collect()
}

fn capitalised(word: &str) -> String {
    let mut letters = word.chars();
    letters
        .next()
        .map(|first| first.to_uppercase().chain(letters).collect())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_from_the_kernels_files() {
        let text = "processor\t: 0\nmodel name\t: Some CPU @ 2.0GHz\nMemTotal:       16384 kB\n";
        assert_eq!(
            field(text, "model name").as_deref(),
            Some("Some CPU @ 2.0GHz")
        );
        assert_eq!(field(text, "MemTotal").as_deref(), Some("16384 kB"));
        assert_eq!(field(text, "flags"), None);
        assert!(Environment::look().cores > 0);
    }
}
