//! Handing a command over to `flow-lm`, the same program with the language-model runtime linked in.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use super::error::CliError;
use crate::engine::{Executor, Plan};
use crate::graph::Graph;
use crate::ops::Catalog;

/// Whether something that will or may run needs the language-model runtime, and this binary does not have it.
pub fn needed(plan: &Plan, graph: &Graph, catalog: &Catalog, executor: &dyn Executor) -> bool {
    !catalog.has_language_model() && plan.needs_language_model(graph, catalog, Some(executor))
}

/// Replaces this process by `flow-lm` with the same arguments; returns only where that fails.
pub fn to_language_model() -> CliError {
    let missing = |what: String| {
        let help = "build it with the feature `torch` (`make build`), or run the part of the pipeline that needs no model (`--until`)";
        CliError::failed(
            format!("this run needs a language model, and {what}"),
            Some(help.to_owned()),
        )
    };
    let program = match std::env::current_exe() {
        Ok(path) => path.with_file_name("flow-lm"),
        Err(error) => return missing(format!("the place of `flow` is not known: {error}")),
    };
    if !program.is_file() {
        return missing(format!("there is no `{}`", program.display()));
    }
    let error = Command::new(&program)
        .args(std::env::args_os().skip(1))
        .exec();
    missing(format!(
        "`{}` cannot be started: {error}",
        program.display()
    ))
}
