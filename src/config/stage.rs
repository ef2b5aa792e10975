//! A stage: a folder with `stage.yaml`, which declares an interface and the steps behind it, and the files the steps use.

use std::path::{Path, PathBuf};

use super::builtin;
use super::call::Call;
use super::declare;
use super::diagnostic::{Diagnostic, Problems};
use super::fields::{self, Fields};
use super::interface::{Columns, Interface, Port};
use super::load::read_text;
use super::source::{Sources, Span};
use super::yaml;

#[derive(Debug)]
pub struct StageSpec {
    pub name: String,
    pub folder: StageFolder,
    /// Which of the sources `stage.yaml` is.
    pub source: u32,
    pub interface: Interface,
    pub outputs: Vec<StageOutput>,
    /// In the order of the file.
    pub steps: Vec<Call>,
}

/// An output of a stage and the step that gives it.
#[derive(Debug)]
pub struct StageOutput {
    pub name: String,
    /// `step` or `step.output`.
    pub from: String,
    pub span: Span,
    /// Columns the output promises.
    pub columns: Columns,
    /// Its rows are printed at the end of a run.
    pub show: bool,
}

/// Where the files of a stage are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StageFolder {
    Disk(PathBuf),
    /// Compiled into the binary.
    BuiltIn(String),
}

impl StageFolder {
    /// The stage of this name: in the project's `stages/`, else built in.
    pub fn find(root: &Path, name: &str) -> Option<Self> {
        let folder = root.join("stages").join(name);
        if folder.join("stage.yaml").is_file() {
            return Some(Self::Disk(folder));
        }
        builtin::file(name, "stage.yaml").map(|_| Self::BuiltIn(name.to_owned()))
    }

    /// Names of all stages a project can use.
    pub fn names(root: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(root.join("stages"))
            .into_iter()
            .flatten()
            .flatten();
        let local = entries
            .filter(|entry| entry.path().join("stage.yaml").is_file())
            .map(|entry| entry.file_name().to_string_lossy().into_owned());
        let mut names: Vec<String> = local.chain(builtin::names().map(str::to_owned)).collect();
        names.sort();
        names.dedup();
        names
    }

    /// How a file of the stage is called in messages.
    pub fn path(&self, file: &str) -> PathBuf {
        match self {
            Self::Disk(folder) => folder.join(file),
            Self::BuiltIn(name) => PathBuf::from(format!("<built-in>/{name}/{file}")),
        }
    }

    /// The text of a file of the stage.
    pub fn read(&self, file: &str) -> Result<String, Diagnostic> {
        match self {
            Self::Disk(folder) => read_text(&folder.join(file)),
            Self::BuiltIn(name) => builtin::file(name, file).map(str::to_owned).ok_or_else(|| {
                Diagnostic::without_place(format!(
                    "the built-in stage `{name}` has no file `{file}`"
                ))
                .help("name one of its files, or a file beside the pipeline")
            }),
        }
    }
}

impl StageSpec {
    /// Reads `stage.yaml`. `None` where nothing can be made of it; the problem is then in `problems`.
    pub fn load(
        folder: StageFolder,
        name: &str,
        sources: &mut Sources,
        problems: &mut Problems,
    ) -> Option<Self> {
        let text = folder
            .read("stage.yaml")
            .map_err(|problem| problems.push(problem))
            .ok()?;
        let source = sources.add(display(&folder.path("stage.yaml")), text.clone());
        let before = problems.len();
        let Some(tree) = yaml::parse(&text, source, problems) else {
            if problems.len() == before {
                problems.push(
                    Diagnostic::new(Span::start_of(source), "the file is empty")
                        .help("a stage has `outputs:` and `steps:`"),
                );
            }
            return None;
        };
        let mut fields = Fields::of(
            &tree,
            "a stage definition",
            Span::start_of(source),
            problems,
        )?;
        let mut interface = Interface {
            doc: fields.text("description", problems).unwrap_or_default(),
            ..Interface::default()
        };
        if let Some(yaml) = fields.get("params") {
            interface.params = declare::params(yaml, problems);
        }
        if let Some(entries) = fields
            .get("inputs")
            .and_then(|yaml| fields::entries(yaml, "`inputs`", problems))
        {
            interface.inputs = entries
                .iter()
                .filter_map(|entry| Some((entry.key.clone(), declare::port(entry, problems)?)))
                .collect();
        }
        let entries = fields
            .require("outputs", problems)
            .and_then(|yaml| fields::entries(yaml, "`outputs`", problems))
            .unwrap_or(&[]);
        let mut outputs = Vec::new();
        for entry in entries {
            let Some(mut output) = Fields::of(&entry.value, "an output", entry.key_span, problems)
            else {
                continue;
            };
            let from = output.require("from", problems);
            let doc = output.text("doc", problems).unwrap_or_default();
            let columns = output
                .get("columns")
                .map(|yaml| declare::columns(yaml, problems))
                .unwrap_or_default();
            let show = output.bool("show", problems).unwrap_or(false);
            output.finish(problems);
            interface.outputs.insert(
                entry.key.clone(),
                Port {
                    kind: None,
                    doc,
                    optional: false,
                    columns: columns.clone(),
                },
            );
            if let Some(from) = from
                && let Some(target) = fields::text(from, "from", problems)
            {
                outputs.push(StageOutput {
                    name: entry.key.clone(),
                    from: target,
                    span: from.span,
                    columns,
                    show,
                });
            }
        }
        let steps = fields
            .require("steps", problems)
            .and_then(|yaml| fields::entries(yaml, "`steps`", problems))
            .unwrap_or(&[]);
        let steps: Vec<Call> = steps
            .iter()
            .filter_map(|entry| Call::read_step(entry, problems))
            .collect();
        fields.finish(problems);
        for step in steps
            .iter()
            .filter(|step| interface.inputs.contains_key(&step.name))
        {
            let message = format!("`{}` is both an input and a step", step.name);
            problems.push(Diagnostic::new(step.span, message).help("name one of them otherwise"));
        }
        Some(Self {
            name: name.to_owned(),
            folder,
            source,
            interface,
            outputs,
            steps,
        })
    }
}

/// A path as messages show it: relative to the working folder where it lies below it.
pub fn display(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(&here)
        .unwrap_or(path)
        .display()
        .to_string()
}
