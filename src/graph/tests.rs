//! Messages for what users get wrong, as they see them, and the shape of what compiles.

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

#[test]
fn expands_stages_into_wired_nodes() {
    let graph = graph(GOOD);
    let names: Vec<_> = graph
        .order
        .iter()
        .map(|&index| graph.dag[index].name.as_str())
        .collect();
    assert_eq!(names, ["questions", "clean.judge", "clean.keep", "merged"]);
    let judge = &graph.dag[graph.node("clean.judge").unwrap()];
    assert_eq!(judge.params, *json!({ "lora": { "dropout": 0.05, "r": 16 }, "mode": "exact", "model": "base", "prompt": "ask.md", "threshold": 0.3 }).as_object().unwrap());
    assert_eq!(judge.files["prompt"].text, "Good? {{ question }}");
    assert_eq!(judge.models["model"].path.as_deref(), Some("model.gguf"));
    assert_eq!(
        (
            judge.inputs[0].port.as_str(),
            judge.inputs[0].node.as_str(),
            judge.inputs[0].output.as_str()
        ),
        ("rows", "questions", "rows")
    );
    assert_eq!(judge.output("log").unwrap().kind, ArtifactKind::Files);
    assert_ne!(judge.seed, 0);
    let merged = &graph.dag[graph.node("merged").unwrap()];
    assert_eq!(merged.inputs[1].node, "clean.keep");
    assert_eq!(merged.seed, 0);
    assert_eq!(graph.name, "p");
    assert_eq!(graph.path.file_name(), Some("p.yaml".as_ref()));
}

#[test]
fn lays_profiles_and_set_over() {
    let project = Project::new(&[("pipelines/p.yaml", GOOD)]);
    let set = vec!["clean.with.lora_unused=1".to_owned()];
    assert!(
        project
            .compile(Request {
                set,
                ..Request::default()
            })
            .is_err()
    );
    let set = vec![
        "questions.with.limit=9".to_owned(),
        "seed=8".to_owned(),
        "questions.with.columns=[id, question, x]".to_owned(),
    ];
    let graph = project
        .compile(Request {
            profile: Some("small".into()),
            set,
            ..Request::default()
        })
        .unwrap();
    assert_eq!(
        graph.dag[graph.node("questions").unwrap()].params["limit"],
        9
    );
    assert_eq!(
        graph.dag[graph.node("clean.judge").unwrap()].params["threshold"],
        1.0
    );
    assert_eq!(graph.seed, 8);
    assert_eq!(graph.profile.as_deref(), Some("small"));
    assert_eq!(
        graph.dag[graph.node("questions").unwrap()].outputs[0]
            .columns
            .as_ref()
            .unwrap()
            .len(),
        3
    );
}

#[test]
fn substitutes_the_environment_by_type() {
    let text = "stages:\n  a: { uses: rows, with: { limit: \"${LIMIT}\", url: \"${LIMIT}\", columns: [\"${X:-id}\"] } }\n";
    let graph = graph(text);
    let node = &graph.dag[graph.node("a").unwrap()];
    assert_eq!(node.params["limit"], 7);
    assert_eq!(node.params["url"], "7");
    assert_eq!(node.params["columns"], json!(["id"]));
    assert_eq!(node.unhashed, ["url"]);
}

#[test]
fn a_file_of_the_users_replaces_that_of_the_stage() {
    let project = Project::new(&[("pipelines/p.yaml", GOOD), ("pipelines/mine.md", "Mine")]);
    let set = vec!["clean.with.prompt=mine.md".to_owned()];
    let graph = project
        .compile(Request {
            set,
            ..Request::default()
        })
        .unwrap();
    assert_eq!(
        graph.dag[graph.node("clean.judge").unwrap()].files["prompt"].text,
        "Mine"
    );
}

#[test]
fn data_may_be_absent_where_it_can_be_fetched_or_is_not_asked_for() {
    let with_url = "stages:\n  a: { uses: rows, with: { path: data.zip, url: \"https://example.org/data.zip\" } }\n";
    let graph = graph(with_url);
    let node = &graph.dag[graph.node("a").unwrap()];
    assert_eq!(node.paths["path"].path, graph.root.join("data.zip"));
    assert_eq!(
        node.paths["path"].url.as_deref(),
        Some("https://example.org/data.zip")
    );

    let project = Project::new(&[(
        "pipelines/p.yaml",
        "stages:\n  a: { uses: rows, with: { path: data.zip } }\n",
    )]);
    insta::assert_snapshot!(project.messages(Request::default()), @r"
     × there is no file or folder `data.zip`
      ╭─[pipelines/p.yaml:2:34]
    1 │ stages:
    2 │   a: { uses: rows, with: { path: data.zip } }
      ·                                  ────────
      ╰────
     help: paths are relative to the project folder; correct it, or put the data there
    ");
    let path = project.0.path().join("pipelines/p.yaml");
    let spec = load(
        &Request {
            path,
            ..Request::default()
        },
        &|_| None,
    )
    .unwrap();
    assert!(compile_without_data(&spec, &catalog()).is_ok());
}

#[test]
fn a_deep_chain_compiles() {
    let mut text = String::from("stages:\n  n0: { uses: rows }\n");
    for index in 1..2000 {
        text.push_str(&format!(
            "  n{index}: {{ uses: merge, inputs: {{ a: n{} }} }}\n",
            index - 1
        ));
    }
    let graph = graph(&text);
    assert_eq!(graph.order.len(), 2000);
    assert!(graph.order.windows(2).all(|pair| pair[0] < pair[1]));
}

#[test]
fn drawings() {
    let graph = graph(GOOD);
    insta::assert_snapshot!(graph.to_mermaid(), @r#"
    flowchart LR
      n0["questions<br/><small>rows</small>"]
      subgraph s_clean["clean"]
        n1["judge<br/><small>ask</small>"]
        n2["keep<br/><small>merge</small>"]
      end
      n3["merged<br/><small>merge</small>"]
      n0 -->|rows| n1
      n1 -->|judged| n2
      n0 -->|rows| n2
      n0 -->|a| n3
      n2 -->|b| n3
    "#);
    insta::assert_snapshot!(graph.to_dot(), @r#"
    digraph "p" {
      rankdir=LR;
      node [shape=box, style=rounded, fontname="sans-serif"];
      "questions" [label="questions\nrows"];
      subgraph "cluster_clean" {
        label="clean";
        "clean.judge" [label="clean.judge\nask"];
        "clean.keep" [label="clean.keep\nmerge"];
      }
      "merged" [label="merged\nmerge"];
      "questions" -> "clean.judge" [label="rows"];
      "clean.judge" -> "clean.keep" [label="judged"];
      "questions" -> "clean.keep" [label="rows"];
      "questions" -> "merged" [label="a"];
      "clean.keep" -> "merged" [label="b"];
    }
    "#);
}

#[test]
fn unknown_keys_are_reported_together() {
    insta::assert_snapshot!(messages("nmae: x\nstages:\n  a: { uses: rows, whit: {} }\n  b: { use: rows }\n"), @r"
     × unknown key `nmae` in a pipeline
      ╭─[pipelines/p.yaml:1:1]
    1 │ nmae: x
      · ──┬─
      ·   ╰── did you mean `name`?
    2 │ stages:
      ╰────
     help: the keys here are `name`, `description`, `seed`, `models`, `stages`, `show`, `profiles`, `cache`, `tracking`

     × unknown key `whit` in a stage
      ╭─[pipelines/p.yaml:3:20]
    2 │ stages:
    3 │   a: { uses: rows, whit: {} }
      ·                    ──┬─
      ·                      ╰── did you mean `with`?
    4 │   b: { use: rows }
      ╰────
     help: the keys here are `uses`, `with`, `inputs`, `resources`

     × a stage needs the key `uses`
      ╭─[pipelines/p.yaml:4:3]
    3 │   a: { uses: rows, whit: {} }
    4 │   b: { use: rows }
      ·   ─
      ╰────
     help: add `uses: …`

     × unknown key `use` in a stage
      ╭─[pipelines/p.yaml:4:8]
    3 │   a: { uses: rows, whit: {} }
    4 │   b: { use: rows }
      ·        ─┬─
      ·         ╰── did you mean `uses`?
      ╰────
     help: the keys here are `uses`, `with`, `inputs`, `resources`
    ");
}

#[test]
fn unknown_stage_op_param_input_and_model() {
    insta::assert_snapshot!(messages("\
models: { base: { path: model.gguf } }
stages:
  a: { uses: row }
  b: { uses: rows, with: { limti: 3 } }
  c: { uses: judge, with: { model: bse }, inputs: { row: b } }
  d: { uses: merge, inputs: { x: q } }
"), @r"
     × there is no op or stage `row`
      ╭─[pipelines/p.yaml:3:14]
    2 │ stages:
    3 │   a: { uses: row }
      ·              ─┬─
      ·               ╰── did you mean `rows`?
    4 │   b: { uses: rows, with: { limti: 3 } }
      ╰────
     help: ops: `ask`, `merge`, `rows`; stages (folders of `stages/` with a `stage.yaml`): `evaluate`, `judge`, `judge-dedup`, `merge`, `qlora-train`, `quality-filter`, `stratified-split`

     × the op `rows` has no param `limti`
      ╭─[pipelines/p.yaml:4:28]
    3 │   a: { uses: row }
    4 │   b: { uses: rows, with: { limti: 3 } }
      ·                            ──┬──
      ·                              ╰── did you mean `limit`?
    5 │   c: { uses: judge, with: { model: bse }, inputs: { row: b } }
      ╰────
     help: the op `rows` has `columns`, `limit`, `path`, `url`

     × the stage `judge` needs the input `rows` (What to judge)
      ╭─[pipelines/p.yaml:5:3]
    4 │   b: { uses: rows, with: { limti: 3 } }
    5 │   c: { uses: judge, with: { model: bse }, inputs: { row: b } }
      ·   ─
    6 │   d: { uses: merge, inputs: { x: q } }
      ╰────
     help: add `inputs: { rows: <stage> }`

     × there is no model `bse`
      ╭─[pipelines/p.yaml:5:36]
    4 │   b: { uses: rows, with: { limti: 3 } }
    5 │   c: { uses: judge, with: { model: bse }, inputs: { row: b } }
      ·                                    ─┬─
      ·                                     ╰── did you mean `base`?
    6 │   d: { uses: merge, inputs: { x: q } }
      ╰────
     help: add it under `models:`; there are `base`

     × the stage `judge` has no input `row`
      ╭─[pipelines/p.yaml:5:53]
    4 │   b: { uses: rows, with: { limti: 3 } }
    5 │   c: { uses: judge, with: { model: bse }, inputs: { row: b } }
      ·                                                     ─┬─
      ·                                                      ╰── did you mean `rows`?
    6 │   d: { uses: merge, inputs: { x: q } }
      ╰────
     help: the stage `judge` takes `rows`

     × there is no stage `q`
      ╭─[pipelines/p.yaml:6:34]
    5 │   c: { uses: judge, with: { model: bse }, inputs: { row: b } }
    6 │   d: { uses: merge, inputs: { x: q } }
      ·                                  ─
      ╰────
     help: the stages are `a`, `b`, `c`, `d`
    ");
}

#[test]
fn wrong_types_and_ranges() {
    insta::assert_snapshot!(messages("\
seed: soon
models: { base: { path: model.gguf } }
stages:
  a: { uses: rows, with: { limit: many, columns: id } }
  b: { uses: rows, with: { limit: 0, url: 5 } }
  c:
    uses: ask
    with:
      model: base
      prompt: stages/judge/ask.md
      threshold: 1.5
      mode: fats
      lora: { r: 2.5, drop: 1 }
    inputs: { rows: a }
"), @r"
     × `seed` takes a whole number of 0 or more, this is the text `soon`
      ╭─[pipelines/p.yaml:1:7]
    1 │ seed: soon
      ·       ────
    2 │ models: { base: { path: model.gguf } }
      ╰────
     help: for example `seed: 3407`

     × `limit` takes a whole number of at least 1, this is the text `many`
      ╭─[pipelines/p.yaml:4:35]
    3 │ stages:
    4 │   a: { uses: rows, with: { limit: many, columns: id } }
      ·                                   ────
    5 │   b: { uses: rows, with: { limit: 0, url: 5 } }
      ╰────

     × `columns` takes a list, this is the text `id`
      ╭─[pipelines/p.yaml:4:50]
    3 │ stages:
    4 │   a: { uses: rows, with: { limit: many, columns: id } }
      ·                                                  ──
    5 │   b: { uses: rows, with: { limit: 0, url: 5 } }
      ╰────
     help: write `[a, b]`

     × `limit` takes a whole number of at least 1, this is the integer `0`
      ╭─[pipelines/p.yaml:5:35]
    4 │   a: { uses: rows, with: { limit: many, columns: id } }
    5 │   b: { uses: rows, with: { limit: 0, url: 5 } }
      ·                                   ─
    6 │   c:
      ╰────

     × `url` takes a text, this is the integer `5`
      ╭─[pipelines/p.yaml:5:43]
    4 │   a: { uses: rows, with: { limit: many, columns: id } }
    5 │   b: { uses: rows, with: { limit: 0, url: 5 } }
      ·                                           ─
    6 │   c:
      ╰────
     help: put quotes around it to make it text

     × `threshold` takes a number from 0 to 1, this is the number `1.5`
       ╭─[pipelines/p.yaml:11:18]
    10 │       prompt: stages/judge/ask.md
    11 │       threshold: 1.5
       ·                  ───
    12 │       mode: fats
       ╰────

     × `mode` cannot be `fats`
       ╭─[pipelines/p.yaml:12:13]
    11 │       threshold: 1.5
    12 │       mode: fats
       ·             ──┬─
       ·               ╰── did you mean `fast`?
    13 │       lora: { r: 2.5, drop: 1 }
       ╰────
     help: choose one of `fast`, `exact`

     × `r` takes a whole number of at least 1, this is the number `2.5`
       ╭─[pipelines/p.yaml:13:18]
    12 │       mode: fats
    13 │       lora: { r: 2.5, drop: 1 }
       ·                  ───
    14 │     inputs: { rows: a }
       ╰────

     × `lora` has no param `drop`
       ╭─[pipelines/p.yaml:13:23]
    12 │       mode: fats
    13 │       lora: { r: 2.5, drop: 1 }
       ·                       ──┬─
       ·                         ╰── did you mean `dropout`?
    14 │     inputs: { rows: a }
       ╰────
     help: `lora` has `dropout`, `r`
    ");
}

#[test]
fn missing_params_and_inputs() {
    insta::assert_snapshot!(messages("stages:\n  a: { uses: ask }\n  b: { uses: judge, with: {} }\n"), @r"
     × the op `ask` needs the param `model` (The model that answers)
      ╭─[pipelines/p.yaml:2:3]
    1 │ stages:
    2 │   a: { uses: ask }
      ·   ─
    3 │   b: { uses: judge, with: {} }
      ╰────
     help: add `model: …` under `with:`; it takes the name of a model under `models:`

     × the op `ask` needs the param `prompt`
      ╭─[pipelines/p.yaml:2:3]
    1 │ stages:
    2 │   a: { uses: ask }
      ·   ─
    3 │   b: { uses: judge, with: {} }
      ╰────
     help: add `prompt: …` under `with:`; it takes the name of a text file

     × the op `ask` needs the input `rows` (Rows to ask about)
      ╭─[pipelines/p.yaml:2:3]
    1 │ stages:
    2 │   a: { uses: ask }
      ·   ─
    3 │   b: { uses: judge, with: {} }
      ╰────
     help: add `inputs: { rows: <stage> }`

     × the stage `judge` needs the param `model` (The judge)
      ╭─[pipelines/p.yaml:3:3]
    2 │   a: { uses: ask }
    3 │   b: { uses: judge, with: {} }
      ·   ─
      ╰────
     help: add `model: …` under `with:`; it takes the name of a model under `models:`

     × the stage `judge` needs the input `rows` (What to judge)
      ╭─[pipelines/p.yaml:3:3]
    2 │   a: { uses: ask }
    3 │   b: { uses: judge, with: {} }
      ·   ─
      ╰────
     help: add `inputs: { rows: <stage> }`
    ");
}

#[test]
fn cycles_are_named() {
    insta::assert_snapshot!(messages("\
stages:
  a: { uses: merge, inputs: { x: c } }
  b: { uses: merge, inputs: { x: a } }
  c: { uses: merge, inputs: { x: b } }
  d: { uses: merge, inputs: { x: d } }
"), @r"
     × these wait for each other: a → b → c → a
      ╭─[pipelines/p.yaml:2:34]
    1 │ stages:
    2 │   a: { uses: merge, inputs: { x: c } }
      ·                                  ┬
      ·                                  ╰── this input closes the cycle
    3 │   b: { uses: merge, inputs: { x: a } }
      ╰────
     help: remove or change one of the inputs named here

     × these wait for each other: d → d
      ╭─[pipelines/p.yaml:5:34]
    4 │   c: { uses: merge, inputs: { x: b } }
    5 │   d: { uses: merge, inputs: { x: d } }
      ·                                  ┬
      ·                                  ╰── this input closes the cycle
      ╰────
     help: remove or change one of the inputs named here
    ");
}

#[test]
fn missing_columns_name_those_there_are() {
    insta::assert_snapshot!(messages("\
models: { base: { path: model.gguf } }
stages:
  a: { uses: rows, with: { columns: [id, Questions] } }
  b: { uses: judge, inputs: { rows: a }, with: { model: base } }
"), @r"
     × the input `rows` of the stage `judge` needs the column `question`, which `a` does not have
      ╭─[pipelines/p.yaml:4:37]
    3 │   a: { uses: rows, with: { columns: [id, Questions] } }
    4 │   b: { uses: judge, inputs: { rows: a }, with: { model: base } }
      ·                                     ┬
      ·                                     ╰── did you mean `Questions`?
      ╰────
     help: `a` has the columns `id`, `Questions`
    ");
}

#[test]
fn wrong_outputs_and_kinds() {
    insta::assert_snapshot!(messages("\
models: { base: { path: model.gguf } }
stages:
  a: { uses: rows, with: { columns: [id, question] } }
  b: { uses: judge, inputs: { rows: a }, with: { model: base } }
  c: { uses: merge, inputs: { x: b } }
  d: { uses: merge, inputs: { x: b.keep } }
  e: { uses: judge, inputs: { rows: b.log }, with: { model: base } }
"), @r"
     × `b` has several outputs: `kept`, `log`
      ╭─[pipelines/p.yaml:5:34]
    4 │   b: { uses: judge, inputs: { rows: a }, with: { model: base } }
    5 │   c: { uses: merge, inputs: { x: b } }
      ·                                  ─
    6 │   d: { uses: merge, inputs: { x: b.keep } }
      ╰────
     help: name one, such as `b.kept`

     × `b` has no output `keep`
      ╭─[pipelines/p.yaml:6:34]
    5 │   c: { uses: merge, inputs: { x: b } }
    6 │   d: { uses: merge, inputs: { x: b.keep } }
      ·                                  ──────
    7 │   e: { uses: judge, inputs: { rows: b.log }, with: { model: base } }
      ╰────
     help: its outputs are `kept`, `log`

     × the input `rows` of the stage `judge` takes a table, `b.log` gives files
      ╭─[pipelines/p.yaml:7:37]
    6 │   d: { uses: merge, inputs: { x: b.keep } }
    7 │   e: { uses: judge, inputs: { rows: b.log }, with: { model: base } }
      ·                                     ─────
      ╰────
     help: its outputs of the right kind are `verdicts`
    ");
}

#[test]
fn problems_of_an_op_stand_at_its_param() {
    insta::assert_snapshot!(messages("stages:\n  a:\n    uses: merge\n    with: { query: bad }\n"), @r"
     × the query has no FROM
      ╭─[pipelines/p.yaml:4:20]
    3 │     uses: merge
    4 │     with: { query: bad }
      ·                    ───
      ╰────
     help: add one
    ");
}

#[test]
fn missing_files_and_models() {
    insta::assert_snapshot!(messages("\
models:
  base: { path: nowhere.gguf }
  both: { path: a, hf: b }
  typo: { hff: b }
stages:
  a: { uses: rows, with: { columns: [id, question] } }
  b: { uses: judge, inputs: { rows: a }, with: { model: base, prompt: asks.md } }
"), @r"
     × the model `base` is not at `nowhere.gguf`
      ╭─[pipelines/p.yaml:2:3]
    1 │ models:
    2 │   base: { path: nowhere.gguf }
      ·   ────
    3 │   both: { path: a, hf: b }
      ╰────
     help: a model path is a GGUF file or a folder with `config.json`; correct it, or put the model there

     × a model needs exactly one of `path`, `hf` and `url`; `both` has `path`, `hf`
      ╭─[pipelines/p.yaml:3:3]
    2 │   base: { path: nowhere.gguf }
    3 │   both: { path: a, hf: b }
      ·   ────
    4 │   typo: { hff: b }
      ╰────
     help: keep the one place the model comes from

     × unknown key `hff` in a model
      ╭─[pipelines/p.yaml:4:11]
    3 │   both: { path: a, hf: b }
    4 │   typo: { hff: b }
      ·           ─┬─
      ·            ╰── did you mean `hf`?
    5 │ stages:
      ╰────
     help: the keys here are `path`, `hf`, `revision`, `url`, `name`, `api_key_env`

     × there is no file `asks.md`
      ╭─[pipelines/p.yaml:7:71]
    6 │   a: { uses: rows, with: { columns: [id, question] } }
    7 │   b: { uses: judge, inputs: { rows: a }, with: { model: base, prompt: asks.md } }
      ·                                                                       ───────
      ╰────
     help: looked for `pipelines/asks.md`, `asks.md`, `stages/judge/asks.md`
    ");
}

#[test]
fn faults_of_a_stage_definition() {
    let stage = "\
params:
  x: { type: integr }
  y: { type: integer, default: a }
inputs:
  rows: { kind: tabel }
outputs:
  out: { from: kept }
  other: { from: keep.rows, columns: [answer] }
steps:
  keep: { op: merge, with: { query: $z }, inputs: { r: row } }
  find: { op: mege }
";
    let project = Project::new(&[
        ("stages/bad/stage.yaml", stage),
        (
            "pipelines/p.yaml",
            "stages:\n  a: { uses: rows }\n  b: { uses: bad, inputs: { rows: a } }\n",
        ),
    ]);
    insta::assert_snapshot!(project.messages(Request::default()), @r"
     × there is no param type `integr`
      ╭─[stages/bad/stage.yaml:2:14]
    1 │ params:
    2 │   x: { type: integr }
      ·              ───┬──
      ·                 ╰── did you mean `integer`?
    3 │   y: { type: integer, default: a }
      ╰────
     help: the types are `boolean`, `integer`, `number`, `text`, `choice`, `model`, `file`, `path`, `list`, `record`, `map`, `any`

     × `y` takes a whole number, this is the text `a`
      ╭─[stages/bad/stage.yaml:3:32]
    2 │   x: { type: integr }
    3 │   y: { type: integer, default: a }
      ·                                ─
    4 │ inputs:
      ╰────

     × there is no artifact kind `tabel`
      ╭─[stages/bad/stage.yaml:5:17]
    4 │ inputs:
    5 │   rows: { kind: tabel }
      ·                 ──┬──
      ·                   ╰── did you mean `table`?
    6 │ outputs:
      ╰────
     help: the kinds are `table`, `files`, `any`

     × the stage has no step or input `kept`
      ╭─[stages/bad/stage.yaml:7:16]
    6 │ outputs:
    7 │   out: { from: kept }
      ·                ────
    8 │   other: { from: keep.rows, columns: [answer] }
      ╰────
     help: there are `keep`, `find`

     × the stage `bad` has no param `z`
       ╭─[stages/bad/stage.yaml:10:37]
     9 │ steps:
    10 │   keep: { op: merge, with: { query: $z }, inputs: { r: row } }
       ·                                     ──
    11 │   find: { op: mege }
       ╰────
     help: declare it under `params:` (there are `y`, `seed`), or write `$$z` for the text

     × the stage has no step or input `row`
       ╭─[stages/bad/stage.yaml:10:56]
     9 │ steps:
    10 │   keep: { op: merge, with: { query: $z }, inputs: { r: row } }
       ·                                                        ─┬─
       ·                                                         ╰── did you mean `rows`?
    11 │   find: { op: mege }
       ╰────
     help: there are `keep`, `find`, `rows`

     × there is no op `mege`
       ╭─[stages/bad/stage.yaml:11:15]
    10 │   keep: { op: merge, with: { query: $z }, inputs: { r: row } }
    11 │   find: { op: mege }
       ·               ──┬─
       ·                 ╰── did you mean `merge`?
       ╰────
     help: the ops are `ask`, `merge`, `rows`
    ");
}

#[test]
fn broken_yaml() {
    insta::assert_snapshot!(messages("stages:\n\ta: { uses: rows }\n"), @r"
     × a tab indents this line, which YAML does not allow
      ╭─[pipelines/p.yaml:2:1]
    1 │ stages:
    2 │     a: { uses: rows }
      · ▲
      ╰────
     help: indent with spaces
    ");
    insta::assert_snapshot!(messages("stages:\n  a: { uses: rows\n"), @r"
     × this is not valid YAML: while parsing a flow mapping, did not find expected ',' or '}'
      ╭─[pipelines/p.yaml:2:17]
    1 │ stages:
    2 │   a: { uses: rows
      ·                 ─
      ╰────
     help: check the indentation, quotes and brackets on this line and the one before it
    ");
    insta::assert_snapshot!(messages("stages:\n  a: { uses: rows }\n  a: { uses: merge }\nseed: 1\nseed: 2\n"), @r"
     × the key `a` is given twice
      ╭─[pipelines/p.yaml:3:3]
    2 │   a: { uses: rows }
    3 │   a: { uses: merge }
      ·   ┬
      ·   ╰── again here
    4 │ seed: 1
      ╰────
     help: remove one of them

     × the key `seed` is given twice
      ╭─[pipelines/p.yaml:5:1]
    4 │ seed: 1
    5 │ seed: 2
      · ──┬─
      ·   ╰── again here
      ╰────
     help: remove one of them
    ");
    insta::assert_snapshot!(messages(""), @r"
    × the file is empty
     ╭─[pipelines/p.yaml:1:1]
     ╰────
    help: a pipeline has at least `stages:` with one stage in it
    ");
    insta::assert_snapshot!(messages("# only a comment\n"), @r"
     × the file is empty
      ╭─[pipelines/p.yaml:1:1]
    1 │ # only a comment
      · ▲
      ╰────
     help: a pipeline has at least `stages:` with one stage in it
    ");
    insta::assert_snapshot!(messages("- a\n- b\n"), @r"
     × a pipeline is a mapping, this is a list
      ╭─[pipelines/p.yaml:1:1]
    1 │ - a
      · ───
    2 │ - b
      ╰────
     help: write `key: value` pairs
    ");
    insta::assert_snapshot!(messages("stages: {}\n"), @r"
     × the pipeline has no stages
      ╭─[pipelines/p.yaml:1:9]
    1 │ stages: {}
      ·         ──
      ╰────
     help: add one, such as `rows: { uses: source, with: { path: rows.csv } }`
    ");
}

#[test]
fn alias_bombs_end_early() {
    let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..12 {
        let items = vec![format!("*a{}", level - 1); 10].join(", ");
        text.push_str(&format!("a{level}: &a{level} [{items}]\n"));
    }
    insta::assert_snapshot!(messages(&text), @r"
     × the aliases of this file stand for more than 100000 values
      ╭─[pipelines/p.yaml:5:45]
    4 │ a3: &a3 [*a2, *a2, *a2, *a2, *a2, *a2, *a2, *a2, *a2, *a2]
    5 │ a4: &a4 [*a3, *a3, *a3, *a3, *a3, *a3, *a3, *a3, *a3, *a3]
      ·                                             ───
    6 │ a5: &a5 [*a4, *a4, *a4, *a4, *a4, *a4, *a4, *a4, *a4, *a4]
      ╰────
     help: write fewer aliases of aliases
    ");
    insta::assert_snapshot!(messages(&format!("stages: {}x{}\n", "[".repeat(100), "]".repeat(100))), @r"
     × values are nested more than 64 deep
      ╭─[pipelines/p.yaml:1:72]
    1 │ stages: [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[x]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]
      ·                                                                        ─
      ╰────
     help: flatten this part
    ");
}

#[test]
fn files_that_are_no_pipeline() {
    let project = Project::new(&[]);
    std::fs::create_dir_all(project.0.path().join("pipelines")).unwrap();
    insta::assert_snapshot!(project.messages(Request::default()), @r"
    × there is no file `pipelines/p.yaml`
    help: check the path
    ");
    std::fs::write(project.0.path().join("pipelines/q.yaml"), "").unwrap();
    insta::assert_snapshot!(project.messages(Request::default()), @r"
    × there is no file `pipelines/p.yaml`
    help: pipelines nearby: `pipelines/q.yaml`
    ");
    std::fs::write(
        project.0.path().join("pipelines/p.yaml"),
        b"stages:\n  caf\xe9: {}\n",
    )
    .unwrap();
    insta::assert_snapshot!(project.messages(Request::default()), @r"
    × `pipelines/p.yaml` is not UTF-8 text: byte 14 on line 2 is invalid
    help: convert it, for example with `iconv -t utf-8 pipelines/p.yaml`
    ");
    std::fs::remove_file(project.0.path().join("pipelines/p.yaml")).unwrap();
    std::fs::create_dir(project.0.path().join("pipelines/p.yaml")).unwrap();
    insta::assert_snapshot!(project.messages(Request::default()), @r"
    × `pipelines/p.yaml` is a folder, not a file
    help: name a file in it
    ");
}

#[test]
fn profiles_and_set_are_checked() {
    let text = format!(
        "{GOOD}  broken:\n    quesions.with.limit: 1\n    clean.uses: x\n    clean.with.threshold: high\n"
    );
    let project = Project::new(&[("pipelines/p.yaml", text.as_str())]);
    let request = |profile: &str, set: &[&str]| Request {
        profile: (!profile.is_empty()).then(|| profile.to_owned()),
        set: set.iter().map(|text| (*text).to_owned()).collect(),
        ..Request::default()
    };
    insta::assert_snapshot!(project.messages(request("broken", &[])), @r"
     × there is no stage `quesions` to override
       ╭─[pipelines/p.yaml:13:5]
    12 │   broken:
    13 │     quesions.with.limit: 1
       ·     ─────────┬─────────
       ·              ╰── did you mean `questions`?
    14 │     clean.uses: x
       ╰────
     help: begin with a stage (`questions`, `clean`, `merged`) or with `models`, `seed`, `cache`, `tracking`

     × `uses` of the stage `clean` cannot be overridden
       ╭─[pipelines/p.yaml:14:5]
    13 │     quesions.with.limit: 1
    14 │     clean.uses: x
       ·     ──────────
    15 │     clean.with.threshold: high
       ╰────
     help: write `clean.with.<param>`, `clean.inputs.<input>` or `clean.resources.<resource>`

     × `threshold` takes a number from 0 to 1, this is the text `high`
       ╭─[pipelines/p.yaml:15:27]
    14 │     clean.uses: x
    15 │     clean.with.threshold: high
       ·                           ────
       ╰────
    ");
    let project = Project::new(&[("pipelines/p.yaml", GOOD)]);
    insta::assert_snapshot!(project.messages(request("smal", &[])), @r"
     × there is no profile `smal`
      ╭─[--profile:1:1]
    1 │ smal
      · ──┬─
      ·   ╰── did you mean `small`?
      ╰────
     help: the profiles are `small`
    ");
    insta::assert_snapshot!(project.messages(request("", &["questions.with.limit=none", "clean.with.threshold", "questions.with.limit=[1"])), @r"
     × `limit` takes a whole number of at least 1, this is the text `none`
      ╭─[--set:1:22]
    1 │ questions.with.limit=none
      ·                      ────
      ╰────

     × `--set` takes `key=value`
      ╭─[--set:1:1]
    1 │ clean.with.threshold
      · ────────────────────
      ╰────
     help: for example `--set questions.with.limit=100`

     × this is not valid YAML: while parsing a flow sequence, expected ',' or ']'
      ╭─[--set:1:1]
    1 │ questions.with.limit=[1
      · ───────────────────────
      ╰────
     help: check the indentation, quotes and brackets on this line and the one before it
    ");
}

#[test]
fn unset_variables() {
    insta::assert_snapshot!(messages("stages:\n  a: { uses: rows, with: { url: \"${NOWHERE}/x\" } }\n"), @r#"
     × the environment variable `NOWHERE` is not set
      ╭─[pipelines/p.yaml:2:33]
    1 │ stages:
    2 │   a: { uses: rows, with: { url: "${NOWHERE}/x" } }
      ·                                 ──────────────
      ╰────
     help: set it, give a default as `${NOWHERE:-…}`, or write `$${` for a literal `${`
    "#);
}

#[test]
fn places_are_told_to_programs() {
    let project = Project::new(&[(
        "pipelines/p.yaml",
        "stages:\n  a: { uses: rows, with: { limit: many } }\n",
    )]);
    let Err(diagnostics) = project.compile(Request::default()) else {
        panic!("compiled")
    };
    let place = &diagnostics.to_json()[0]["place"];
    assert_eq!(
        (&place["path"], &place["line"], &place["column"]),
        (&json!("stages.a.with.limit"), &json!(2), &json!(35))
    );
    assert!(Path::new(place["file"].as_str().unwrap()).ends_with("pipelines/p.yaml"));
}
