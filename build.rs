//! Records where libtorch and libduckdb lie as an rpath, so that the binaries run without environment variables.

use std::env;

fn main() {
    println!("cargo:rerun-if-env-changed=DUCKDB_LIB_DIR");
    let torch = env::var("DEP_TCH_LIBTORCH_LIB").ok();
    let duckdb = env::var("DUCKDB_LIB_DIR").ok();
    for folder in [torch, duckdb].into_iter().flatten() {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{folder}");
    }
}
