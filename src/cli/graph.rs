//! `flow graph`: draws a pipeline.

use clap::{Args, ValueEnum};

use super::arguments::PipelineArguments;
use super::error::{CliError, Exit};
use super::output::Output;
use crate::graph::compile_without_data;
use crate::ops::Catalog;

/// Draw a pipeline as Mermaid or Graphviz text
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    pipeline: PipelineArguments,

    /// The language of the drawing
    #[arg(long, value_enum, default_value_t = Format::Mermaid)]
    format: Format,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    Mermaid,
    Dot,
}

pub fn run(arguments: &Arguments, catalog: &Catalog, output: &Output) -> Result<Exit, CliError> {
    let spec = arguments.pipeline.load()?;
    let graph = compile_without_data(&spec, catalog)?;
    output.print(&match arguments.format {
        Format::Mermaid => graph.to_mermaid(),
        Format::Dot => graph.to_dot(),
    })?;
    Ok(Exit::Ok)
}
