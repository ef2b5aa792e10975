//! `flow schema`: JSON Schemas of what people write, for editors, and of the record of a run, for programs.

use clap::{Args, ValueEnum};

use super::error::{CliError, Exit};
use super::folders::Folders;
use super::output::Output;
use crate::config::schema::{self, Interfaces};
use crate::config::{Problems, Sources, StageFolder, StageSpec};
use crate::ops::Catalog;
use crate::runs::head_schema;

/// Print the JSON Schema of pipelines, stages or run records
///
/// That of pipelines knows the params of every op and of every stage that can be used from the working folder. With the YAML language
/// server, begin a file with `# yaml-language-server: $schema=<file>`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// What to describe
    #[arg(value_enum, default_value_t = Subject::Pipeline)]
    subject: Subject,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Subject {
    Pipeline,
    Stage,
    /// `runs/<id>/run.json`
    Run,
}

pub fn run(arguments: &Arguments, catalog: &Catalog, output: &Output) -> Result<Exit, CliError> {
    let mut uses: Interfaces = catalog
        .names()
        .filter_map(|name| Some((name.to_owned(), catalog.get(name)?.interface())))
        .collect();
    let schema = match arguments.subject {
        Subject::Stage => schema::stage(&uses),
        Subject::Run => head_schema(),
        Subject::Pipeline => {
            uses.extend(stages(output));
            schema::pipeline(&uses)
        }
    };
    output.print_json(&schema)?;
    Ok(Exit::Ok)
}

/// The stages that can be used here; one that cannot be read is left out and named.
fn stages(output: &Output) -> Interfaces {
    let root = Folders::of_working_folder().root;
    let mut found = Interfaces::new();
    for name in StageFolder::names(&root) {
        let (mut sources, mut problems) = (Sources::default(), Problems::new());
        let stage = StageFolder::find(&root, &name)
            .and_then(|folder| StageSpec::load(folder, &name, &mut sources, &mut problems));
        match stage.filter(|_| problems.is_empty()) {
            Some(stage) => {
                found.insert(name, stage.interface);
            }
            None => output.tell(&format!("the stage `{name}` has problems and is left out; `flow check` a pipeline that uses it to see them")),
        }
    }
    found
}
