//! Whole runs of `command` pipelines in this process.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Mutex;

use super::*;
use crate::cache::{Cache, Holder, RunLock};
use crate::config::{ModelSpec, Request, load};
use crate::digest::Digest;
use crate::graph::{Graph, PathInput, compile};
use crate::ops::Catalog;

mod executor;
mod scripts;

struct Project {
    folder: tempfile::TempDir,
}

/// Everything a run said.
struct Ran {
    outcome: RunOutcome,
    events: Vec<EventKind>,
}

#[derive(Default)]
struct Heard(Mutex<Vec<EventKind>>);

impl Sink for Heard {
    fn event(&self, event: &Event) {
        self.0.lock().unwrap().push(event.kind.clone());
    }
}

struct NoModels;

impl Resolve for NoModels {
    fn resolve(&self, _: &ModelSpec) -> Result<(PathBuf, Digest), ResolveError> {
        Err(ResolveError::new("no models here", "use none"))
    }

    fn fetch(&self, _: &PathInput) -> Result<PathBuf, ResolveError> {
        Err(ResolveError::new("no network here", "use files"))
    }
}

impl Project {
    fn new(pipeline: &str) -> Self {
        let project = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        project.write("pipeline.yaml", pipeline);
        project
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    fn graph(&self) -> Graph {
        let request = Request {
            path: self.path("pipeline.yaml"),
            ..Request::default()
        };
        let spec = load(&request, &|_| None).unwrap();
        compile(&spec, &Catalog::light()).unwrap_or_else(|problems| panic!("{problems:?}"))
    }

    fn cache(&self) -> Cache {
        let folder = self.path("cache");
        Cache::open(
            &folder,
            RunLock::acquire(&folder, &Holder::new("test"), |_| true).unwrap(),
        )
        .unwrap()
    }

    fn plan(&self, selection: &Selection) -> Result<Plan, EngineError> {
        plan(
            &self.graph(),
            &self.cache(),
            selection,
            &NoModels,
            &Heard::default(),
        )
    }

    /// One line a node, as a terminal would show it.
    fn planned(&self) -> Vec<String> {
        let describe = |node: &NodePlan| match &node.state {
            NodeState::WillRun { reasons } => format!(
                "{}: {}",
                node.name,
                reasons
                    .iter()
                    .map(ToString::to_string)
                    .collect::<Vec<_>>()
                    .join(", ")
            ),
            NodeState::MayRun { upstreams } => {
                format!("{}: if {} changes", node.name, upstreams.join(", "))
            }
            NodeState::Cached { .. } => format!("{}: cached", node.name),
        };
        self.plan(&Selection::default())
            .unwrap()
            .nodes
            .iter()
            .map(describe)
            .collect()
    }

    fn options(&self) -> RunOptions {
        RunOptions {
            id: "test".to_owned(),
            jobs: 2,
            gpus: Vec::new(),
            offline: true,
            home: self.path("home"),
            cancel: CancelToken::default(),
            executor: None,
        }
    }

    fn run_with(&self, selection: &Selection, options: &RunOptions) -> Result<Ran, EngineError> {
        let (graph, cache, heard) = (self.graph(), self.cache(), Heard::default());
        let plan = plan(&graph, &cache, selection, &NoModels, &heard)?;
        let outcome = run(&graph, &Catalog::light(), &cache, &plan, options, &heard);
        Ok(Ran {
            outcome,
            events: heard.0.into_inner().unwrap(),
        })
    }

    fn run(&self) -> Ran {
        self.run_with(&Selection::default(), &self.options())
            .unwrap()
    }

    fn run_selected(&self, selection: Selection) -> Result<Ran, EngineError> {
        self.run_with(&selection, &self.options())
    }
}

impl Ran {
    fn with(&self, status: NodeStatus) -> Vec<&str> {
        let mut names: Vec<&str> = self
            .outcome
            .nodes
            .iter()
            .filter(|node| node.status == status)
            .map(|node| node.name.as_str())
            .collect();
        names.sort_unstable();
        names
    }

    fn ran(&self) -> Vec<&str> {
        self.with(NodeStatus::Ran)
    }

    fn digests(&self) -> BTreeMap<&str, Digest> {
        self.outcome
            .nodes
            .iter()
            .map(|node| (node.name.as_str(), node.outputs["out"].digest))
            .collect()
    }

    fn headline(&self) -> String {
        self.outcome
            .headline
            .as_ref()
            .map(|failure| failure.message.clone())
            .unwrap_or_default()
    }
}

const DIAMOND: &str = r#"
name: diamond
stages:
  top:   { uses: command, with: { run: "tr a-z A-Z < \"$FILES\" > $OUT/x", files: [data.txt] } }
  left:  { uses: command, inputs: { top: top }, with: { run: "head -c 1 $IN_top/x > $OUT/x" } }
  right: { uses: command, inputs: { top: top }, with: { run: "wc -c < $IN_top/x > $OUT/x" } }
  end:   { uses: command, inputs: { left: left, right: right }, with: { run: "cat $IN_left/x $IN_right/x > $OUT/x" } }
"#;

fn diamond() -> Project {
    let project = Project::new(DIAMOND);
    project.write("data.txt", "abc");
    project
}

#[test]
fn only_what_a_change_reaches_runs_again() {
    let project = diamond();
    let first = project.run();
    assert_eq!(
        first.outcome.state,
        RunState::Finished,
        "{}",
        first.headline()
    );
    assert_eq!(first.ran(), ["end", "left", "right", "top"]);
    assert!(project.run().ran().is_empty());
    // A touch is no change.
    let file = std::fs::File::options()
        .append(true)
        .open(project.path("data.txt"))
        .unwrap();
    file.set_modified(std::time::SystemTime::now() + std::time::Duration::from_secs(5))
        .unwrap();
    assert!(project.run().ran().is_empty());
    // Another content, the same output.
    project.write("data.txt", "ABC");
    assert_eq!(project.run().ran(), ["top"]);
    // Another output with the same first letter and the same length: both readers run, what follows does not.
    project.write("data.txt", "axc");
    assert_eq!(project.run().ran(), ["left", "right", "top"]);
    project.write("data.txt", "xyzw");
    assert_eq!(project.run().ran(), ["end", "left", "right", "top"]);
    // Back again: everything is there.
    project.write("data.txt", "abc");
    let back = project.run();
    assert!(back.ran().is_empty());
    assert_eq!(back.digests(), first.digests());
}

#[test]
fn the_plan_says_what_and_why() {
    let project = diamond();
    assert_eq!(
        project.planned(),
        [
            "top: first run",
            "left: first run",
            "right: first run",
            "end: first run"
        ]
    );
    project.run();
    assert_eq!(
        project.planned(),
        [
            "top: cached",
            "left: cached",
            "right: cached",
            "end: cached"
        ]
    );
    project.write("data.txt", "other");
    let planned = project.planned();
    assert!(
        planned[0].starts_with("top: paths.files.0: ") && planned[0].contains(" → "),
        "{planned:?}"
    );
    assert_eq!(
        planned[1..],
        [
            "left: if top changes",
            "right: if top changes",
            "end: if left, right changes"
        ]
    );
    project.write("data.txt", "abc");
    project.write(
        "pipeline.yaml",
        &std::fs::read_to_string(project.path("pipeline.yaml"))
            .unwrap()
            .replace("head -c 1", "head -c 2"),
    );
    let planned = project.planned();
    assert!(planned[1].starts_with("left: with.run: "), "{planned:?}");
    assert_eq!(
        (
            planned[0].as_str(),
            planned[2].as_str(),
            planned[3].as_str()
        ),
        ("top: cached", "right: cached", "end: if left changes")
    );
    assert_eq!(project.run().ran(), ["end", "left"]);
}

#[test]
fn a_selection_needs_its_upstreams_cached() {
    let project = diamond();
    let only = |name: &str| Selection {
        only: vec![name.to_owned()],
        ..Selection::default()
    };
    let error = project.run_selected(only("left")).err().unwrap();
    insta::assert_snapshot!(error, @"`top` is not cached, and `left` needs what it gives");
    let until = Selection {
        until: Some("left".to_owned()),
        ..Selection::default()
    };
    assert_eq!(project.run_selected(until).unwrap().ran(), ["left", "top"]);
    assert_eq!(
        project.run_selected(only("right")).unwrap().ran(),
        ["right"]
    );
    let from = |name: &str| Selection {
        from: Some(name.to_owned()),
        ..Selection::default()
    };
    assert_eq!(project.run_selected(from("left")).unwrap().ran(), ["end"]);
    let force = |names: &[&str]| Selection {
        force: names.iter().map(|name| (*name).to_owned()).collect(),
        ..Selection::default()
    };
    assert_eq!(
        project.run_selected(force(&["top"])).unwrap().ran(),
        ["top"]
    );
    assert_eq!(
        project.run_selected(force(&["all"])).unwrap().ran(),
        ["end", "left", "right", "top"]
    );
    let error = project.run_selected(only("lft")).err().unwrap();
    insta::assert_snapshot!(error, @"there is no stage or node `lft` in the pipeline; did you mean `left`?");
}

#[test]
fn a_failure_takes_out_what_is_below_and_nothing_else() {
    let project = diamond();
    let text = std::fs::read_to_string(project.path("pipeline.yaml")).unwrap();
    project.write(
        "pipeline.yaml",
        &text.replace("head -c 1", "echo broken >&2; exit 3; head"),
    );
    let ran = project.run();
    assert_eq!(ran.outcome.state, RunState::Failed);
    assert_eq!(
        (
            ran.ran(),
            ran.with(NodeStatus::Failed),
            ran.with(NodeStatus::Skipped)
        ),
        (vec!["right", "top"], vec!["left"], vec!["end"])
    );
    assert_eq!(
        ran.headline(),
        "the script ended with exit code 3\n  broken"
    );
    assert!(
        ran.events
            .iter()
            .any(|event| matches!(event, EventKind::Log { message, .. } if message == "broken"))
    );
    project.write("pipeline.yaml", &text);
    assert_eq!(project.run().ran(), ["end", "left"]);
}

#[test]
fn data_that_changes_under_a_node_is_not_recorded() {
    let project = Project::new(
        "stages:\n  a: { uses: command, with: { run: 'cat data.txt >> $OUT/x; echo more >> DATA', files: [data.txt] } }\n",
    );
    project.write("data.txt", "one\n");
    let text = std::fs::read_to_string(project.path("pipeline.yaml")).unwrap();
    let data = project.path("data.txt");
    project.write(
        "pipeline.yaml",
        &text
            .replace("DATA", data.to_str().unwrap())
            .replace("cat data.txt", &format!("cat {}", data.display())),
    );
    let ran = project.run();
    assert_eq!(ran.with(NodeStatus::Failed), ["a"]);
    assert!(
        ran.headline()
            .contains("changed while `a` was reading it; nothing was recorded"),
        "{}",
        ran.headline()
    );
    assert!(project.planned()[0].starts_with("a: first run"));
}

#[test]
fn a_result_that_was_tampered_with_is_made_again() {
    let project = diamond();
    let first = project.run();
    let left = first.digests()["left"];
    let object = project.path("cache/objects").join(left.to_string());
    let mut permissions = std::fs::metadata(object.join("x")).unwrap().permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o644);
    std::fs::set_permissions(object.join("x"), permissions).unwrap();
    std::fs::write(object.join("x"), "tampered").unwrap();
    assert_eq!(
        project.planned()[1],
        "left: output `out` `x` has changed since it was stored"
    );
    let again = project.run();
    assert_eq!(again.ran(), ["left"]);
    assert_eq!(again.digests(), first.digests());
    assert_eq!(std::fs::read_to_string(object.join("x")).unwrap(), "A");
    std::fs::remove_dir_all(&object).unwrap();
    assert_eq!(project.run().ran(), ["left"]);
    // A copy with other times is no damage.
    let mtime = std::time::SystemTime::UNIX_EPOCH;
    std::fs::File::open(object.join("x"))
        .unwrap()
        .set_modified(mtime)
        .unwrap();
    assert!(project.run().ran().is_empty());
}

#[test]
fn an_interrupt_stops_at_once_and_the_next_run_goes_on() {
    let project = Project::new(
        "stages:\n  a: { uses: command, with: { run: 'echo a > $OUT/x' } }\n  b: { uses: command, inputs: { a: a }, with: { run: 'touch BEGUN; test -e GO || sleep 60; cat $IN_a/x > $OUT/x' } }\n  c: { uses: command, inputs: { b: b }, with: { run: 'cat $IN_b/x > $OUT/x' } }\n",
    );
    let go = project.path("go");
    let text = std::fs::read_to_string(project.path("pipeline.yaml")).unwrap();
    let begun = project.path("begun");
    let text = text.replace("BEGUN", begun.to_str().unwrap());
    project.write("pipeline.yaml", &text.replace("GO", go.to_str().unwrap()));
    let options = project.options();
    let ran = std::thread::scope(|scope| {
        let run = scope.spawn(|| project.run_with(&Selection::default(), &options).unwrap());
        while !begun.exists() {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        options.cancel.cancel();
        run.join().unwrap()
    });
    assert_eq!(ran.outcome.state, RunState::Interrupted);
    assert_eq!(
        (ran.ran(), ran.with(NodeStatus::Skipped)),
        (vec!["a"], vec!["b", "c"])
    );
    assert!(ran.outcome.seconds < 30.0);
    project.write("go", "");
    assert_eq!(project.run().ran(), ["b", "c"]);
}

#[test]
fn a_long_chain_runs_without_recursion() {
    let mut text = String::from("stages:\n  s0: { uses: command, with: { run: ':' } }\n");
    for index in 1..2000 {
        text.push_str(&format!(
            "  s{index}: {{ uses: command, inputs: {{ x: s{} }}, with: {{ run: ':' }} }}\n",
            index - 1
        ));
    }
    let project = Project::new(&text);
    // All scripts give the same empty folder, so the second is the last to run: from then on nothing is new.
    let ran = project.run();
    assert_eq!(ran.outcome.state, RunState::Finished, "{}", ran.headline());
    assert_eq!(ran.ran(), ["s0", "s1"]);
    assert_eq!(ran.with(NodeStatus::Cached).len(), 1998);
}
