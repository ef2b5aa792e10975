//! The command line: what was typed, which command answers it, and how the process ends.
//!
//! The only place that reads the environment and prints. Standard output carries results, standard error everything else.

mod arguments;
mod bench;
mod cache;
mod chat;
mod check;
mod compare;
mod compare_group;
mod completions;
mod data;
mod error;
mod executor;
mod export;
mod fetch;
mod folders;
mod gpus;
mod graph;
mod handover;
mod interrupt;
mod matrix;
mod metrics;
mod node;
mod output;
mod plan;
mod record;
mod report;
mod resolve;
mod results;
mod rows;
mod run;
mod runs;
mod schema;
mod serve;
mod shared;
mod show;
#[cfg(feature = "torch")]
mod speaker;
mod sync;
mod trace;
mod tracking;
mod trained;
mod why;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::ops::Catalog;
use arguments::style_of_help;
use error::{CliError, Exit};
use output::Output;

/// Runs declarative pipelines that make, judge and learn from text.
///
/// A pipeline is a YAML file; what it computes is cached by content, so a run does only what changed.
#[derive(Debug, Parser)]
#[command(name = "flow", version, styles = style_of_help(), max_term_width = 120)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Arguments),
    Plan(plan::Arguments),
    Check(check::Arguments),
    Graph(graph::Arguments),
    Runs(runs::Arguments),
    Show(show::Arguments),
    Why(why::Arguments),
    Compare(compare::Arguments),
    Metrics(metrics::Arguments),
    Report(report::Arguments),
    Trace(trace::Arguments),
    Data(data::Arguments),
    Fetch(fetch::Arguments),
    Sync(sync::Arguments),
    Export(export::Arguments),
    Chat(chat::Arguments),
    Serve(serve::Arguments),
    Cache(cache::Arguments),
    Bench(bench::Arguments),
    Schema(schema::Arguments),
    Completions(completions::Arguments),
    #[command(hide = true)]
    Node(node::Arguments),
}

/// What commands do with a language model, for the binary that has the runtime.
#[derive(Clone, Copy)]
pub struct ModelCommands {
    bench: bench::ModelBench,
    export: export::ModelExport,
    chat: chat::ModelChat,
    serve: serve::ModelServe,
}

#[cfg(feature = "torch")]
pub const MODEL_COMMANDS: ModelCommands = ModelCommands {
    bench: bench::with_model,
    export: export::with_model,
    chat: chat::with_model,
    serve: serve::with_model,
};

/// Runs the command that was typed. `catalog` says which ops this binary can run; `model` runs what needs the
/// language-model runtime, where this binary has it.
pub fn main(catalog: &Catalog, model: Option<ModelCommands>) -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version come this way too; where they cannot be printed there is nobody to tell.
            let _ = error.print();
            return if error.use_stderr() {
                Exit::Wrong.into()
            } else {
                Exit::Ok.into()
            };
        }
    };
    let output = Output::of_process();
    output::start_logging();
    let result = match &cli.command {
        Command::Run(arguments) => run::run(arguments, catalog, &output),
        Command::Plan(arguments) => plan::run(arguments, catalog, &output),
        Command::Check(arguments) => check::run(arguments, catalog, &output),
        Command::Graph(arguments) => graph::run(arguments, catalog, &output),
        Command::Runs(arguments) => runs::run(arguments, &output),
        Command::Show(arguments) => show::run(arguments, &output),
        Command::Why(arguments) => why::run(arguments, &output),
        Command::Compare(arguments) => compare::run(arguments, &output),
        Command::Metrics(arguments) => metrics::run(arguments, &output),
        Command::Report(arguments) => report::run(arguments, &output),
        Command::Trace(arguments) => trace::run(arguments, &output),
        Command::Data(arguments) => data::run(arguments, &output),
        Command::Fetch(arguments) => fetch::run(arguments, catalog, &output),
        Command::Sync(arguments) => sync::run(arguments, &output),
        Command::Export(arguments) => {
            export::run(arguments, model.map(|model| model.export), &output)
        }
        Command::Chat(arguments) => chat::run(arguments, model.map(|model| model.chat), &output),
        Command::Serve(arguments) => serve::run(arguments, model.map(|model| model.serve), &output),
        Command::Cache(arguments) => cache::run(arguments, &output),
        Command::Bench(arguments) => {
            bench::run(arguments, catalog, model.map(|model| model.bench), &output)
        }
        Command::Schema(arguments) => schema::run(arguments, catalog, &output),
        Command::Completions(arguments) => completions::run(arguments, &output),
        Command::Node(arguments) => node::run(arguments, catalog),
    };
    match result {
        Ok(exit) => exit.into(),
        Err(CliError::Closed) => Exit::Ok.into(),
        Err(error) => {
            output.error(&error);
            error.exit().into()
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
