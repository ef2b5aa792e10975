//! A disk that fails or is slow and a clock that is wrong: `faulty.c`, compiled once and preloaded.

use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;

use tempfile::TempDir;

static FOLDER: LazyLock<TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/support/faulty.c");
    let compiled = Command::new(std::env::var_os("CC").unwrap_or_else(|| "cc".into()))
        .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"])
        .arg(folder.path().join("faulty.so"))
        .arg(source)
        .arg("-ldl")
        .output()
        .expect("a C compiler is there");
    assert!(
        compiled.status.success(),
        "{}",
        String::from_utf8_lossy(&compiled.stderr)
    );
    folder
});

/// Lets `command` meet the faults, each a variable of `faulty.c` with its value.
pub fn faulty<'a>(command: &'a mut Command, faults: &[(&str, &str)]) -> &'a mut Command {
    command
        .env("LD_PRELOAD", FOLDER.path().join("faulty.so"))
        .envs(faults.iter().copied())
}
