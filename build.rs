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

/// Compiles the C++ that reaches what tch hides, against the headers beside the libtorch that tch was built with, and
/// the kernel for processors of one kind.
#[cfg(feature = "torch")]
fn compile_native() {
    let lib = env::var("DEP_TCH_LIBTORCH_LIB").expect("set by torch-sys");
    let include = Path::new(&lib).join("../include");
    let build = |sources: &[&str]| {
        let mut build = cc::Build::new();
        build.cpp(true).std("c++17").warnings(false).files(sources);
        for source in sources {
            println!("cargo:rerun-if-changed={source}");
        }
        build
    };
    let mut sources = vec!["src/lm/cuda/native.cpp"];
    if env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|arch| arch == "x86_64") {
        println!("cargo:rerun-if-changed=src/lm/cpu_attention/kernel.h");
        sources.push("src/lm/cpu_attention/fused.cpp");
        // Optimised in every profile: unoptimised it is slower than what it is there to replace.
        let mut kernel = build(&["src/lm/cpu_attention/kernel.cpp"]);
        for flag in ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512bf16"] {
            kernel.flag(flag);
        }
        kernel
            .opt_level(3)
            .debug(false)
            .compile("flow_cpu_attention");
    }
    build(&sources)
        .include(include.join("torch/csrc/api/include"))
        .include(include)
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
