//! `flow completions`: scripts that complete commands and options in a shell.

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use super::Cli;
use super::error::{CliError, Exit};
use super::output::Output;

/// Print a completion script for a shell
#[derive(Debug, Args)]
pub struct Arguments {
    shell: Shell,
}

pub fn run(arguments: &Arguments, output: &Output) -> Result<Exit, CliError> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut Cli::command(), "flow", &mut script);
    output.print(&String::from_utf8_lossy(&script))?;
    Ok(Exit::Ok)
}
