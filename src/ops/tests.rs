//! Whole runs of the data ops in this process: source, sql and score, from YAML to tables.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::{Catalog, OpError, Table};
use crate::cache::{Cache, Holder, RunLock};
use crate::config::{ModelSpec, Request, load};
use crate::digest::Digest;
use crate::download;
use crate::engine::{
    CancelToken, Event, EventKind, NodeStatus, Resolve, ResolveError, RunOptions, RunOutcome,
    Selection, Sink, plan, run,
};
use crate::graph::{PathInput, compile};

#[derive(Default)]
struct Heard(Mutex<Vec<String>>);

impl Sink for Heard {
    fn event(&self, event: &Event) {
        if let EventKind::Log { message, .. } = &event.kind {
            self.0.lock().unwrap().push(message.clone());
        }
    }
}

struct Nothing;

impl Resolve for Nothing {
    fn resolve(&self, _: &ModelSpec) -> Result<(PathBuf, Digest), ResolveError> {
        Err(ResolveError::new("no models here", "use none"))
    }

    fn fetch(&self, _: &PathInput) -> Result<PathBuf, ResolveError> {
        Err(ResolveError::new("no network here", "use files"))
    }
}

struct Project(tempfile::TempDir);

struct Ran {
    outcome: RunOutcome,
    log: Vec<String>,
    cache: Cache,
}

impl Project {
    fn new(pipeline: &str) -> Self {
        let project = Self(tempfile::tempdir().unwrap());
        project.write("pipeline.yaml", pipeline);
        project
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        std::fs::write(self.0.path().join(name), content).unwrap();
    }

    /// Every problem of the pipeline, as text.
    fn problems(&self) -> String {
        let request = Request {
            path: self.0.path().join("pipeline.yaml"),
            ..Request::default()
        };
        let checked =
            load(&request, &|_| None).and_then(|spec| compile(&spec, &Catalog::light()).map(drop));
        checked
            .err()
            .map(|problems| problems.render(false, 200))
            .unwrap_or_default()
    }

    fn run(&self) -> Ran {
        let request = Request {
            path: self.0.path().join("pipeline.yaml"),
            ..Request::default()
        };
        let spec = load(&request, &|_| None).unwrap();
        let graph = compile(&spec, &Catalog::light())
            .unwrap_or_else(|problems| panic!("{}", problems.render(false, 120)));
        let folder = self.0.path().join("cache");
        let cache = Cache::open(
            &folder,
            RunLock::acquire(&folder, &Holder::new("test"), |_| true).unwrap(),
        )
        .unwrap();
        let heard = Heard::default();
        let plan = plan(&graph, &cache, &Selection::default(), &Nothing, &heard).unwrap();
        let cancel = CancelToken::default();
        let options = RunOptions {
            id: "test".to_owned(),
            jobs: 1,
            gpus: Vec::new(),
            offline: true,
            home: self.0.path().join("home"),
            cancel,
            executor: None,
        };
        let outcome = run(&graph, &Catalog::light(), &cache, &plan, &options, &heard);
        Ran {
            outcome,
            log: heard.0.into_inner().unwrap(),
            cache,
        }
    }
}

impl Ran {
    fn status(&self, name: &str) -> NodeStatus {
        self.outcome
            .nodes
            .iter()
            .find(|node| node.name == name)
            .unwrap()
            .status
    }

    fn headline(&self) -> String {
        self.outcome
            .headline
            .as_ref()
            .map(|failure| failure.message.clone())
            .unwrap_or_default()
    }

    fn query(&self, node: &str, output: &str, sql: &str) -> Table {
        let node = self
            .outcome
            .nodes
            .iter()
            .find(|other| other.name == node)
            .unwrap();
        let artifact = node
            .outputs
            .get(output)
            .unwrap_or_else(|| panic!("no {output}: {}", self.headline()))
            .clone();
        let inputs = BTreeMap::from([("t".to_owned(), artifact)]);
        self.cache
            .with_views(&inputs, |connection| Table::query(connection, sql))
            .unwrap_or_else(|error: OpError| panic!("{error}"))
    }

    fn text(&self, node: &str, output: &str, sql: &str) -> String {
        let rows = self.query(node, output, sql).rows;
        rows.iter()
            .map(|row| row[0].as_str().unwrap_or("null").to_owned())
            .collect::<Vec<_>>()
            .join(" ")
    }
}

const PIPELINE: &str = r#"
name: data
stages:
  questions: { uses: source, with: { path: rows.csv, columns: { question_type: kind } } }
  predicted: { uses: sql, inputs: { rows: questions }, with: { query: "select id, question_type, answer as reference, case when id = '1' then answer else $other end as prediction from rows", params: { other: nothing } } }
  scores:    { uses: score, inputs: { rows: predicted }, with: { group: question_type } }
  ordered:   { uses: sql, inputs: { scored: scores.rows }, with: { file: order.sql } }
"#;

fn project() -> Project {
    let project = Project::new(PIPELINE);
    project.write(
        "rows.csv",
        "id,question,answer,kind\n1,What?,This.,a\n2,Who?,Me,b\n3,,Lost,b\n",
    );
    project.write(
        "order.sql",
        "select id, f1\nfrom scored\norder by f1 desc, id\n",
    );
    project
}

#[test]
fn data_goes_from_a_file_to_scores() {
    let project = project();
    let ran = project.run();
    assert_eq!(ran.headline(), "");
    assert!(
        ran.log
            .iter()
            .any(|line| line == "1 row without `question` dropped: 3"),
        "{:?}",
        ran.log
    );
    assert_eq!(
        ran.text(
            "questions",
            "rows",
            "select string_agg(column_name, ',') from (describe t)"
        ),
        "id,question,answer,question_type"
    );
    assert_eq!(
        ran.text("ordered", "rows", "select id || ':' || f1 from t"),
        "1:100.0 2:0.0"
    );
    assert_eq!(
        ran.text(
            "scores",
            "summary",
            "select slice || ':' || n || ':' || exact_match from t"
        ),
        "all:2:50.0 a:1:100.0 b:1:0.0"
    );
    drop(ran);
    // A row that is dropped anyway changes the source's input and nothing after it.
    project.write(
        "rows.csv",
        "id,question,answer,kind\n1,What?,This.,a\n2,Who?,Me,b\n4,,Lost,b\n",
    );
    let again = project.run();
    let status = ["questions", "predicted", "scores", "ordered"].map(|name| again.status(name));
    assert_eq!(
        status,
        [
            NodeStatus::Ran,
            NodeStatus::Cached,
            NodeStatus::Cached,
            NodeStatus::Cached
        ]
    );
}

#[test]
fn files_are_taken_as_they_are() {
    let project = Project::new(
        "name: files\nstages:\n  data: { uses: source, with: { path: folder, format: files } }\n  use: { uses: command, inputs: { data: data }, with: { run: cat $IN_data/sub/a.txt > $OUT/b } }\n",
    );
    std::fs::create_dir_all(project.0.path().join("folder/sub")).unwrap();
    project.write("folder/sub/a.txt", "hello");
    let ran = project.run();
    assert_eq!(
        (ran.headline().as_str(), ran.status("use")),
        ("", NodeStatus::Ran)
    );
}

#[test]
fn content_that_is_not_what_was_pinned_is_refused() {
    let project = project();
    let pinned = download::content_digest(&project.0.path().join("rows.csv")).unwrap();
    let with = |digest: Digest| {
        PIPELINE.replace(
            "path: rows.csv",
            &format!("path: rows.csv, digest: {digest}"),
        )
    };
    project.write("pipeline.yaml", with(Digest::of("other")));
    let message = project.run().headline();
    assert!(
        message.contains(&format!(
            "has the digest {pinned}, not {}",
            Digest::of("other")
        )),
        "{message}"
    );
    project.write("pipeline.yaml", with(pinned));
    assert_eq!(project.run().headline(), "");
}

#[test]
fn mistakes_in_columns_and_queries_show_before_the_run() {
    let project = project();
    let rendered = |from: &str, to: &str| {
        project.write("pipeline.yaml", PIPELINE.replace(from, to));
        let folder = std::fs::canonicalize(project.0.path()).unwrap();
        let shown = project
            .problems()
            .replace(&format!("{}/", folder.display()), "");
        shown
            .lines()
            .map(str::trim_end)
            .collect::<Vec<_>>()
            .join("\n")
    };
    let column = rendered("question_type: kind", "question_type: knd");
    assert!(
        column.contains("the data has no column `knd`") && column.contains("did you mean `kind`?"),
        "{column}"
    );
    let group = rendered("group: question_type", "group: question_typ");
    assert!(
        group.contains("the input `rows` has no column `question_typ`"),
        "{group}"
    );
    project.write("order.sql", "select id,\n  f2\nfrom scored\n");
    let query = rendered("name: data", "name: data");
    assert!(
        query.contains("order.sql, line 2: Referenced column \"f2\" not found"),
        "{query}"
    );
    project.write("rows.csv", "");
    assert!(rendered("name: data", "name: data").contains("is empty"));
}

#[test]
fn a_query_that_fails_while_it_runs_names_its_file() {
    let project = project();
    project.write(
        "order.sql",
        "select case when id = '1' then error('row ' || id) end\nfrom scored\n",
    );
    let message = project.run().headline();
    assert_eq!(message, "order.sql: row 1");
}

/// The sample that stands in for MedQuAD has what the stages are to deal with.
#[test]
fn the_sample_has_duplicates_and_conflicts() {
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines/data/sample.jsonl");
    let project = Project::new(&format!(
        "name: sample\nstages:\n  questions: {{ uses: source, with: {{ path: {} }} }}\n",
        sample.display()
    ));
    let ran = project.run();
    let facts = ran.query(
        "questions",
        "rows",
        "select count(*), count(distinct id), count(distinct question_type), count(*) - count(distinct (question, answer)) from t",
    );
    let facts: Vec<i64> = facts.rows[0]
        .iter()
        .map(|cell| cell.as_i64().unwrap())
        .collect();
    assert_eq!(facts, [400, 400, 13, 12]);
    let conflicts = ran.query("questions", "rows", "select count(*) from (select question from t group by 1 having count(distinct answer) > 1)");
    assert_eq!(conflicts.rows[0][0].as_i64(), Some(30));
}

/// A pipeline file and a stage file with damage, read and compiled in a project that has both.
fn compile_damaged(seeds: &[Vec<u8>], damaged: &str) {
    crate::fuzz::survives(seeds, |bytes| {
        let project = project();
        let folder = project.0.path();
        std::fs::create_dir_all(folder.join("stages/few")).unwrap();
        project.write("stages/few/stage.yaml", STAGE);
        project.write("pipeline.yaml", "stages: { rows: { uses: source, with: { path: rows.csv } }, few: { uses: few, inputs: { rows: rows }, with: { least: 2 } } }");
        project.write(damaged, bytes);
        project.problems();
    });
}

const STAGE: &str = "\
description: Few rows.
params:
  least: { type: integer, min: 1, default: 1, doc: At least. }
  names: { type: list, items: { type: text }, default: [] }
inputs: { rows: { kind: table, columns: [id, question] } }
outputs: { rows: { from: pick, doc: Some. } }
steps:
  pick: { op: sql, inputs: { rows: rows }, with: { query: 'select * from rows where len(question) > $least', params: { least: $least } } }
";

#[test]
fn survives_damage_of_pipelines() {
    let medquad = concat!(env!("CARGO_MANIFEST_DIR"), "/pipelines/medquad.yaml");
    let anchors = "base: &b { limit: 3 }\nstages:\n  rows: { uses: source, with: { <<: *b, path: rows.csv } }\n  two: { uses: source, with: *b }\n";
    let seeds = [
        PIPELINE.into(),
        std::fs::read(medquad).unwrap(),
        anchors.into(),
    ];
    compile_damaged(&seeds, "pipeline.yaml");
}

#[test]
fn survives_damage_of_stages() {
    compile_damaged(&[STAGE.into()], "stages/few/stage.yaml");
}
