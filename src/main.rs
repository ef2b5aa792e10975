//! `flow` without the language-model runtime; hands over to `flow-lm` when a run needs it.

use std::process::ExitCode;

use flow::ops::Catalog;

fn main() -> ExitCode {
    flow::cli::main(&Catalog::light(), None)
}
