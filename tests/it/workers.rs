//! Other processes at work on a node, without a cluster.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use flow::cache::{Artifact, Cache, Holder, RunLock};
use flow::config::{ModelSpec, Request, load};
use flow::digest::Digest;
use flow::engine::{
    self, Call, CancelToken, Event, Executor, Resolve, ResolveError, RunOptions, RunOutcome,
    RunState, Selection, Sink,
};
use flow::graph::{Node, PathInput, compile};
use flow::jobs::PerDevice;
use flow::ops::{Catalog, Context, Op, OpError, Outputs};

use crate::support::{Project, judge_telling};

const JUDGED: &str = r#"
models: { wise: { url: "${JUDGE}", name: wise } }
stages:
  rows: { uses: sql, with: { query: "select range::varchar as id, 'question ' || range || repeat(' and so on', (range % 7)::int) as question from range(120)" } }
  judged: { uses: judge, inputs: { rows: rows }, with: { model: wise, prompt: prompt.md, choices: "[0, 1]", shards: 4 } }
"#;

/// Shares work in parts between two devices and gives nodes called `beside…` to the second, as `flow` does with two GPUs and models.
#[derive(Debug)]
struct TwoDevices;

impl Executor for TwoDevices {
    fn takes(&self, _: &dyn Op, _: &Node) -> bool {
        false
    }

    fn most(&self) -> u32 {
        0
    }

    fn run(&self, _: &Call<'_>, _: &mut Context<'_>) -> Result<Outputs, OpError> {
        unreachable!("it takes none")
    }

    fn prepare(&self, op: &dyn Op, context: &mut Context<'_>) -> Result<Option<Outputs>, OpError> {
        let processes = |devices: &[&str]| PerDevice {
            program: env!("CARGO_BIN_EXE_flow").into(),
            devices: devices.iter().map(ToString::to_string).collect(),
        };
        if op.parts(context.node) > 1 {
            context.parts = Some(Arc::new(processes(&["0", "1"])));
        }
        if context.node.name.starts_with("beside") {
            return processes(&["1"]).run(context).map(Some);
        }
        Ok(None)
    }
}

struct OneModel;

impl Resolve for OneModel {
    fn resolve(&self, _: &ModelSpec) -> Result<(PathBuf, Digest), ResolveError> {
        Ok((PathBuf::new(), Digest::of("wise")))
    }

    fn fetch(&self, _: &PathInput) -> Result<PathBuf, ResolveError> {
        Err(ResolveError::new("no network here", "use files"))
    }
}

struct Quiet;

impl Sink for Quiet {
    fn event(&self, _: &Event) {}
}

/// A whole run in this process, with and without helpers.
fn run(project: &Project, executor: Option<Arc<dyn Executor>>, address: &str) -> RunOutcome {
    let request = Request {
        path: project.path("pipelines/p.yaml"),
        ..Request::default()
    };
    let spec = load(&request, &|_| Some(address.to_owned())).unwrap();
    let catalog = Catalog::light();
    let graph = compile(&spec, &catalog).unwrap();
    let folder = project.path("cache");
    let lock = RunLock::acquire(&folder, &Holder::new("test"), |_| false).unwrap();
    let cache = Cache::open(&folder, lock).unwrap();
    let plan = engine::plan(&graph, &cache, &Selection::default(), &OneModel, &Quiet).unwrap();
    let options = RunOptions {
        id: "test".to_owned(),
        jobs: 2,
        gpus: vec![0, 1],
        offline: false,
        home: project.path("home"),
        cancel: CancelToken::default(),
        executor,
    };
    engine::run(&graph, &catalog, &cache, &plan, &options, &Quiet)
}

/// Digests of all outputs of a run that went well.
#[track_caller]
fn digests(outcome: &RunOutcome) -> BTreeMap<String, Digest> {
    assert_eq!(outcome.state, RunState::Finished, "{:?}", outcome.headline);
    let outputs = outcome.nodes.iter().flat_map(|node| {
        let named = |(output, artifact): (&String, &Artifact)| {
            (format!("{}.{output}", node.name), artifact.digest)
        };
        node.outputs.iter().map(named)
    });
    outputs.collect()
}

#[test]
fn processes_for_each_device_give_what_one_gives() {
    let asked: Arc<Mutex<BTreeMap<String, u32>>> = Arc::default();
    let count = Arc::clone(&asked);
    let address = judge_telling(
        |request| i64::from(request.contains('3')),
        move |request| *count.lock().unwrap().entry(request.to_owned()).or_default() += 1,
    );
    let new = || {
        Project::with_pipeline(JUDGED).file(
            "prompt.md",
            "{% block user %}{{ question }}.{% endblock %}\n",
        )
    };
    let alone = run(&new(), None, &address);
    let project = new();
    let together = run(&project, Some(Arc::new(TwoDevices)), &address);
    assert_eq!(digests(&together), digests(&alone));
    let asked = asked.lock().unwrap();
    assert_eq!(asked.len(), 120);
    assert!(asked.values().all(|&times| times == 2), "once for each run");
    assert_eq!(
        std::fs::read_dir(project.path("cache/jobs"))
            .unwrap()
            .count(),
        0
    );
}

const BESIDE: &str = r#"
stages:
  rows: { uses: sql, with: { query: "select range as n from range(9)" } }
  beside_script: { uses: command, inputs: { rows: rows }, with: { run: 'cp $IN_rows $OUT/rows; echo done' } }
  beside_query: { uses: sql, inputs: { rows: rows }, with: { query: "select sum(n) as n from rows" } }
  after: { uses: sql, inputs: { total: beside_query }, with: { query: "select n + 1 as n from total" } }
"#;

#[test]
fn a_node_on_another_gpu_gives_what_it_gives_here() {
    let alone = run(&Project::with_pipeline(BESIDE), None, "");
    let project = Project::with_pipeline(BESIDE);
    let beside = run(&project, Some(Arc::new(TwoDevices)), "");
    assert_eq!(digests(&beside), digests(&alone));
    let left = std::fs::read_dir(project.path("cache/jobs")).unwrap();
    assert_eq!(left.count(), 0);

    let project = Project::with_pipeline(&BESIDE.replace("echo done", "echo no >&2; exit 3"));
    let failed = run(&project, Some(Arc::new(TwoDevices)), "");
    assert_eq!(failed.state, RunState::Failed);
    insta::assert_snapshot!(failed.headline.unwrap().message, @"
    the script ended with exit code 3
      no (the process of GPU 1)
    ");
}

/// A scheduler that lost sight of a machine starts a job a second time while the first is still at work.
#[test]
fn a_worker_that_was_replaced_ends_before_the_other_begins() {
    let script = "echo $$ >> ${FLAGS}/pids; echo begun >> $OUT/x; while [ ! -e ${FLAGS}/go ]; do sleep 0.05; done; echo ended >> $OUT/x";
    let project = Project::with_pipeline(&format!(
        "stages:\n  node: {{ uses: command, with: {{ run: '{script}' }} }}\n"
    ))
    .instead_of(
        "sbatch",
        "cat > \"$FLAGS/job.sh\"; SLURM_JOB_ID=42 setsid sh \"$FLAGS/job.sh\" > \"$FLAGS/first\" 2>&1 < /dev/null & echo 42",
    )
    .instead_of("squeue", "echo '42|RUNNING|flow|n1|None'")
    .instead_of("scancel", "exit 0")
    .with_flags();
    let run = project.begin();
    let pids = || -> Vec<String> {
        let text = std::fs::read_to_string(project.path("flags/pids")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    };
    wait_for(|| pids().len() == 1);
    let jobs: Vec<_> = std::fs::read_dir(project.path("cache/jobs"))
        .unwrap()
        .map(|item| item.unwrap().path())
        .collect();
    let mut second = project.command(&["node", jobs[0].to_str().unwrap()]);
    second
        .env("SLURM_JOB_ID", "42")
        .env("SLURM_RESTART_COUNT", "1");
    let mut second = second.stderr(Stdio::null()).spawn().unwrap();
    wait_for(|| pids().len() == 2);
    let first = pids()[0].clone();
    assert!(!std::path::Path::new(&format!("/proc/{first}")).exists());
    project.flag("go");
    project.outcome(run.wait_with_output().unwrap()).success();
    assert!(second.wait().unwrap().success());
    project
        .flow(&["data", "latest", "node", "--export", "result"])
        .success();
    let result = std::fs::read_to_string(project.path("result/x")).unwrap();
    assert_eq!(result, "begun\nended\n");
}

#[track_caller]
fn wait_for(mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < deadline, "waited too long");
        std::thread::sleep(Duration::from_millis(20));
    }
}
