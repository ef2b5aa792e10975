//! `flow` with the language-model runtime linked in.

use std::process::ExitCode;

use flow::ops::Catalog;

fn main() -> ExitCode {
    flow::cli::main(&Catalog::full(), Some(flow::cli::MODEL_COMMANDS))
}
