//! Records where libtorch and libduckdb lie as an rpath, so that the binaries run without environment variables, and
//! compiles the folder `stages/` into the binary.

use std::fmt::Write as _;
use std::path::Path;
use std::{env, fs};

fn main() {
    println!("cargo:rerun-if-env-changed=DUCKDB_LIB_DIR");
    let torch = env::var("DEP_TCH_LIBTORCH_LIB").ok();
    let duckdb = env::var("DUCKDB_LIB_DIR").ok();
    for folder in [torch, duckdb].into_iter().flatten() {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{folder}");
    }
    #[cfg(feature = "torch")]
    compile_native();
    embed_stages();
}

/// Compiles the C++ that reaches what tch hides, against the headers beside the libtorch that tch was built with.
#[cfg(feature = "torch")]
fn compile_native() {
    const SOURCE: &str = "src/lm/cuda/native.cpp";
    println!("cargo:rerun-if-changed={SOURCE}");
    let lib = env::var("DEP_TCH_LIBTORCH_LIB").expect("set by torch-sys");
    let include = Path::new(&lib).join("../include");
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .warnings(false)
        .include(include.join("torch/csrc/api/include"))
        .include(include)
        .file(SOURCE)
        .compile("flow_native");
}

/// Writes `stages.rs`: a slice of (`stage/file`, text) for every file of every stage.
fn embed_stages() {
    let root = Path::new(&env::var("CARGO_MANIFEST_DIR").expect("set by cargo")).join("stages");
    println!("cargo:rerun-if-changed={}", root.display());
    let mut files = Vec::new();
    for stage in fs::read_dir(&root).into_iter().flatten().flatten() {
        for file in fs::read_dir(stage.path()).into_iter().flatten().flatten() {
            if file.path().is_file() {
                let name = format!(
                    "{}/{}",
                    stage.file_name().to_string_lossy(),
                    file.file_name().to_string_lossy()
                );
                println!("cargo:rerun-if-changed={}", file.path().display());
                files.push((name, file.path()));
            }
        }
    }
    files.sort();
    let mut code = String::from("&[\n");
    for (name, path) in files {
        writeln!(code, "    ({name:?}, include_str!({path:?})),").expect("a string takes all");
    }
    code.push_str("]\n");
    let out = Path::new(&env::var("OUT_DIR").expect("set by cargo")).join("stages.rs");
    fs::write(out, code).expect("the build folder can be written to");
}
