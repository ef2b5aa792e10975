//! Messages for what users get wrong, as they see them, and the shape of what compiles.

mod executors;
mod files;
mod graphs;
mod mistakes;
mod variants;

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::json;
use tempfile::TempDir;

use super::{Graph, Node, compile, compile_without_data};
use crate::config::{
    ArtifactKind, Columns, Diagnostics, Interface, Param, ParamKind, Port, Request, load,
};
use crate::ops::{Catalog, Op, Problem};

/// Gives rows with the columns it is told.
struct Rows;

impl Op for Rows {
    fn name(&self) -> &'static str {
        "rows"
    }

    fn version(&self) -> u32 {
        1
    }

    fn interface(&self) -> Interface {
        let mut interface = Interface::default();
        let text = || Box::new(ParamKind::Text);
        interface.params.insert(
            "columns".into(),
            Param::default(ParamKind::List(text()), json!(["id"]), "Column names."),
        );
        interface.params.insert(
            "limit".into(),
            Param::optional(
                ParamKind::Integer {
                    min: Some(1),
                    max: None,
                },
                "",
            ),
        );
        interface
            .params
            .insert("path".into(), Param::optional(ParamKind::Path, ""));
        interface.params.insert(
            "url".into(),
            Param::optional(ParamKind::Text, "").unhashed(),
        );
        interface
            .outputs
            .insert("rows".into(), Port::table("", &[]));
        interface
    }

    fn columns(
        &self,
        node: &Node,
        _: &BTreeMap<String, Option<Columns>>,
    ) -> Result<BTreeMap<String, Option<Columns>>, Vec<Problem>> {
        let names = node.params["columns"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|name| name.as_str());
        let columns = names
            .map(|name| (name.to_owned(), "VARCHAR".to_owned()))
            .collect();
        Ok(BTreeMap::from([("rows".to_owned(), Some(columns))]))
    }
}

/// Asks a model about each row; wants a question.
struct Ask;

impl Op for Ask {
    fn name(&self) -> &'static str {
        "ask"
    }

    fn version(&self) -> u32 {
        3
    }

    fn interface(&self) -> Interface {
        let number = |min, max| ParamKind::Number {
            min: Some(min),
            max: Some(max),
        };
        let lora = BTreeMap::from([
            (
                "r".to_owned(),
                Param::default(
                    ParamKind::Integer {
                        min: Some(1),
                        max: None,
                    },
                    16,
                    "Rank.",
                ),
            ),
            (
                "dropout".to_owned(),
                Param::default(number(0.0, 1.0), 0.05, ""),
            ),
        ]);
        let mut interface = Interface::default();
        interface.params.insert(
            "model".into(),
            Param::required(ParamKind::Model, "The model that answers."),
        );
        interface
            .params
            .insert("prompt".into(), Param::required(ParamKind::File, ""));
        interface.params.insert(
            "threshold".into(),
            Param::default(number(0.0, 1.0), 0.5, ""),
        );
        interface.params.insert(
            "mode".into(),
            Param::default(
                ParamKind::Choice(vec!["fast".into(), "exact".into()]),
                "exact",
                "",
            ),
        );
        interface
            .params
            .insert("lora".into(), Param::required(ParamKind::Record(lora), ""));
        interface.inputs.insert(
            "rows".into(),
            Port::table("Rows to ask about.", &[("id", ""), ("question", "")]),
        );
        interface
            .inputs
            .insert("adapter".into(), Port::files("").optional());
        interface.outputs.insert(
            "verdicts".into(),
            Port::table("", &[("id", "VARCHAR"), ("verdict", "BIGINT")]),
        );
        interface.outputs.insert("log".into(), Port::files(""));
        interface
    }

    fn seeded(&self, _: &Node) -> bool {
        true
    }
}

/// Takes anything.
struct Merge;

impl Op for Merge {
    fn name(&self) -> &'static str {
        "merge"
    }

    fn version(&self) -> u32 {
        1
    }

    fn interface(&self) -> Interface {
        let mut interface = Interface {
            open_inputs: true,
            ..Interface::default()
        };
        interface
            .params
            .insert("query".into(), Param::default(ParamKind::Text, "", ""));
        interface
            .outputs
            .insert("rows".into(), Port::table("", &[]));
        interface
    }

    fn columns(
        &self,
        node: &Node,
        _: &BTreeMap<String, Option<Columns>>,
    ) -> Result<BTreeMap<String, Option<Columns>>, Vec<Problem>> {
        if node.params["query"] == "bad" {
            return Err(vec![Problem {
                at: "query".into(),
                message: "the query has no FROM".into(),
                help: Some("add one".into()),
            }]);
        }
        Ok(BTreeMap::new())
    }
}

fn catalog() -> Catalog {
    let mut catalog = Catalog::default();
    catalog.add(Rows, None);
    catalog.add(Ask, None);
    catalog.add(Merge, None);
    catalog
}

const ASK_STAGE: &str = "\
description: Judges rows.
params:
  model: { type: model, doc: The judge. }
  threshold: { type: number, default: 0.3, min: 0, max: 1 }
  prompt: { type: file, default: ask.md }
inputs:
  rows: { columns: [id, question], doc: What to judge. }
outputs:
  kept: { from: keep }
  log: { from: judge.log }
steps:
  judge:
    op: ask
    with: { model: $model, prompt: $prompt, threshold: $threshold }
    inputs: { rows: rows }
  keep: { op: merge, inputs: { judged: judge.verdicts, rows: rows } }
";

struct Project(TempDir);

impl Project {
    fn new(files: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let project = Self(folder);
        project.write("stages/judge/stage.yaml", ASK_STAGE);
        project.write("stages/judge/ask.md", "Good? {{ question }}");
        project.write("model.gguf", "");
        for (path, text) in files {
            project.write(path, text);
        }
        project
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.0.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn compile(&self, request: Request) -> Result<Graph, Diagnostics> {
        let path = self.0.path().join("pipelines/p.yaml");
        let environment = |name: &str| (name == "LIMIT").then(|| "7".to_owned());
        let spec = load(&Request { path, ..request }, &environment)?;
        compile(&spec, &catalog())
    }

    /// What the user sees, with the project folder cut out.
    fn messages(&self, request: Request) -> String {
        match self.compile(request) {
            Ok(graph) => panic!("compiled to {} nodes", graph.dag.node_count()),
            Err(diagnostics) => {
                let folder = format!("{}/", self.0.path().display());
                let text = diagnostics.render(false, 10_000).replace(&folder, "");
                text.lines()
                    .map(str::trim_end)
                    .collect::<Vec<_>>()
                    .join("\n")
            }
        }
    }
}

fn graph(pipeline: &str) -> Graph {
    let project = Project::new(&[("pipelines/p.yaml", pipeline)]);
    project
        .compile(Request::default())
        .unwrap_or_else(|problems| panic!("{}", problems.render(false, 200)))
}

fn messages(pipeline: &str) -> String {
    Project::new(&[("pipelines/p.yaml", pipeline)]).messages(Request::default())
}

const GOOD: &str = "\
seed: 7
models:
  base: { path: model.gguf }
stages:
  questions: { uses: rows, with: { columns: [id, question] } }
  clean: { uses: judge, inputs: { rows: questions }, with: { model: base } }
  merged: { uses: merge, inputs: { a: questions, b: clean.kept } }
profiles:
  small:
    questions.with.limit: 3
    clean: { with: { threshold: 1 } }
";
