//! Other processes at work on a node, without a cluster.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use flow::cache::{Cache, Holder, RunLock};
use flow::config::{ModelSpec, Request, load};
use flow::digest::Digest;
use flow::engine::{
    self, Call, CancelToken, Event, Executor, Resolve, ResolveError, RunOptions, RunState,
    Selection, Sink,
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

/// Shares work in parts between two devices, as `flow` does with two GPUs and a model.
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

    fn prepare(&self, op: &dyn Op, context: &mut Context<'_>) -> Result<(), OpError> {
        if op.parts(context.node) > 1 {
            context.parts = Some(Arc::new(PerDevice {
                program: env!("CARGO_BIN_EXE_flow").into(),
                devices: vec!["0".to_owned(), "1".to_owned()],
            }));
        }
        Ok(())
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

/// The digest of what `judged` gives in this process, with and without helpers.
fn judged(project: &Project, executor: Option<Arc<dyn Executor>>, address: &str) -> Digest {
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
    let outcome = engine::run(&graph, &catalog, &cache, &plan, &options, &Quiet);
    assert_eq!(outcome.state, RunState::Finished, "{:?}", outcome.headline);
    let node = outcome.nodes.iter().find(|node| node.name == "judged");
    node.unwrap().outputs["rows"].digest
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
    let alone = judged(&new(), None, &address);
    let project = new();
    let together = judged(&project, Some(Arc::new(TwoDevices)), &address);
    assert_eq!(together, alone);
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
