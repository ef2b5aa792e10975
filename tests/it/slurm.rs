//! Nodes as jobs of a real Slurm cluster on loopback, and what becomes of them when something fails.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Cluster, Project, cluster, judge_telling};

const SLURM: [&str; 4] = ["run", "pipelines/p.yaml", "--executor", "slurm"];

impl Project {
    fn on(self, cluster: &Cluster) -> Self {
        let path = std::env::var("PATH").unwrap();
        self.variable("SLURM_CONF", cluster.conf())
            .variable("PATH", &path)
    }

    /// With a folder `flags`, which scripts see as `${FLAGS}`.
    pub fn with_flags(self) -> Self {
        std::fs::create_dir(self.path("flags")).unwrap();
        let flags = self.path("flags").display().to_string();
        self.variable("FLAGS", &flags)
    }

    pub fn flag(&self, name: &str) {
        std::fs::write(self.path("flags").join(name), "").unwrap();
    }

    fn has(&self, flag: &str) -> bool {
        self.path("flags").join(flag).exists()
    }

    pub fn begin(&self) -> Child {
        let mut command = self.command(&SLURM);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    }

    /// A program of Slurm's name that comes first on the path.
    pub fn instead_of(self, program: &str, script: &str) -> Self {
        let name = format!("bin/{program}");
        self.write(&name, format!("#!/bin/sh\n{script}\n"));
        let path = self.path(&name);
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let path = format!(
            "{}:{}",
            self.path("bin").display(),
            std::env::var("PATH").unwrap()
        );
        self.variable("PATH", &path)
    }

    fn jobs_left(&self) -> Vec<String> {
        let items = std::fs::read_dir(self.path("cache/jobs")).unwrap();
        items
            .map(|item| item.unwrap().file_name().into_string().unwrap())
            .collect()
    }
}

/// Node, output and digest of everything the latest run gave.
fn digests(project: &Project) -> Vec<String> {
    let run = project.latest();
    let mut digests = Vec::new();
    for node in run["nodes"].as_array().unwrap() {
        for output in node["outputs"].as_array().unwrap() {
            digests.push(format!(
                "{} {} {}",
                node["name"], output["name"], output["digest"]
            ));
        }
    }
    digests.sort();
    digests
}

#[track_caller]
fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < deadline, "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn kill(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

/// Tables and files in and out, an empty file, a link, an order that counts.
const WORK: &str = r#"
stages:
  rows: { uses: sql, with: { query: "select range::varchar as id, 'question ' || range as question from range(50) order by range desc" } }
  words: { uses: command, inputs: { rows: rows }, with: { run: 'echo reading; sha256sum < $IN_rows > $OUT/sum; touch $OUT/empty; ln -s sum $OUT/link' } }
  other: { uses: command, inputs: { rows: rows }, with: { run: 'wc -c < $IN_rows > $OUT/size', files: [note.txt] } }
  both: { uses: command, inputs: { words: words, other: other }, with: { run: 'cp -r $IN_words $OUT/words; cat $IN_other/size > $OUT/size' } }
  count: { uses: sql, inputs: { rows: rows }, with: { query: 'select count(*) as n from rows' } }
"#;

#[test]
fn jobs_give_what_this_machine_gives() {
    let Some(cluster) = cluster() else { return };
    let new = || Project::with_pipeline(WORK).file("note.txt", "a note\n");
    let local = new();
    local.run();
    let project = new().on(&cluster);
    let outcome = project.flow(&SLURM).success();
    assert_eq!(digests(&project), digests(&local));
    assert_eq!(project.ran(), ["both", "count", "other", "rows", "words"]);
    assert_eq!(cluster.jobs("words").len(), 1, "{}", outcome.stderr);
    assert!(cluster.jobs("count").is_empty());
    // What a job said is in the node's log, as if it had been said here.
    let run = project.latest()["id"].as_str().unwrap().to_owned();
    let log = std::fs::read_to_string(project.path(&format!("runs/{run}/logs/words.log"))).unwrap();
    assert!(log.contains("reading"), "{log}");
    assert!(project.jobs_left().is_empty());
    project.flow(&["cache", "verify"]).success();
    project.flow(&SLURM).success();
    assert!(project.ran().is_empty());
    project.run();
    assert!(project.ran().is_empty());
}

#[test]
fn a_job_that_fails_says_why_and_where() {
    let Some(cluster) = cluster() else { return };
    let project = Project::with_pipeline(
        "stages:\n  failing: { uses: command, with: { run: 'echo not today >&2; exit 3' } }\n  never: { uses: command, inputs: { failing: failing }, with: { run: 'true' } }\n",
    )
    .on(&cluster);
    let outcome = project.flow(&SLURM).code(1);
    let id = &cluster.jobs("failing")[0].0;
    let said = outcome.messages();
    for part in [
        "`failing` failed: the script ended with exit code 3",
        "  not today",
        &format!("(Slurm job {id}"),
        "help: its whole output is in the node's log",
    ] {
        assert!(said.contains(part), "{part} is not in:\n{said}");
    }
    assert_eq!(project.with_status("skipped"), ["never"]);
    // Another run is another try, which is not misled by what the first has left.
    project.flow(&SLURM).code(1);
    assert_eq!(cluster.jobs("failing").len(), 2);
}

const WAITING: &str = "\
stages:
  quick: { uses: sql, with: { query: 'select 1 as n' } }
  slow: { uses: command, inputs: { q: quick }, with: { run: 'echo $$ > ${FLAGS}/pid; touch ${FLAGS}/started; while [ ! -e ${FLAGS}/go ]; do sleep 0.05; done; echo 2 > $OUT/x' } }
";

fn is_alive(pid: &str) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[test]
fn ctrl_c_ends_jobs_in_order() {
    let Some(cluster) = cluster() else { return };
    let project = Project::with_pipeline(&WAITING.replace("slow:", "stopped:"))
        .on(&cluster)
        .with_flags();
    let run = project.begin();
    wait_for("the script", || project.has("started"));
    kill(&run, Signal::INT);
    let outcome = project.outcome(run.wait_with_output().unwrap()).code(130);
    let goes_on = "the same command goes on from here";
    assert!(outcome.stderr.contains(goes_on), "{}", outcome.stderr);
    let pid = std::fs::read_to_string(project.path("flags/pid")).unwrap();
    wait_for("its end", || !is_alive(pid.trim()));
    assert!(project.jobs_left().is_empty());
    project.flag("go");
    project.flow(&SLURM).success();
    assert_eq!(project.ran(), ["stopped"]);
}

#[test]
fn a_second_ctrl_c_cancels_and_leaves() {
    let Some(cluster) = cluster() else { return };
    // A script that does not let itself be asked.
    let stubborn = WAITING
        .replace("slow:", "stubborn:")
        .replace("echo $$", "trap \"\" TERM; echo $$");
    let project = Project::with_pipeline(&stubborn).on(&cluster).with_flags();
    let run = project.begin();
    wait_for("the script", || project.has("started"));
    kill(&run, Signal::INT);
    std::thread::sleep(Duration::from_millis(200));
    kill(&run, Signal::INT);
    project.outcome(run.wait_with_output().unwrap()).code(130);
    wait_for("the job's end", || {
        cluster
            .jobs("stubborn")
            .iter()
            .all(|(_, state)| !["RUNNING", "COMPLETING", "PENDING"].contains(&state.as_str()))
    });
    let pid = std::fs::read_to_string(project.path("flags/pid")).unwrap();
    wait_for("its end", || !is_alive(pid.trim()));
}

#[test]
fn a_killed_run_finds_its_jobs_again() {
    let Some(cluster) = cluster() else { return };
    let project = Project::with_pipeline(&WAITING.replace("slow:", "orphaned:"))
        .on(&cluster)
        .with_flags();
    let mut run = project.begin();
    wait_for("the script", || project.has("started"));
    kill(&run, Signal::KILL);
    run.wait().unwrap();
    // On this machine nothing may be done to what the job works at.
    let outcome = project.flow(&["run", "pipelines/p.yaml"]).code(1);
    let said = "of an earlier run is at work on it";
    assert!(outcome.stderr.contains(said), "{}", outcome.stderr);
    let again = project.begin();
    project.flag("go");
    project.outcome(again.wait_with_output().unwrap()).success();
    assert_eq!(project.ran(), ["orphaned"]);
    assert_eq!(cluster.jobs("orphaned").len(), 1);
    assert!(project.jobs_left().is_empty());
}

#[test]
fn what_ended_meanwhile_is_taken() {
    let Some(cluster) = cluster() else { return };
    let project = Project::with_pipeline(&WAITING.replace("slow:", "alone:"))
        .on(&cluster)
        .with_flags();
    let mut run = project.begin();
    wait_for("the script", || project.has("started"));
    kill(&run, Signal::KILL);
    run.wait().unwrap();
    project.flag("go");
    wait_for("the job's end", || {
        cluster
            .jobs("alone")
            .iter()
            .all(|(_, state)| state == "COMPLETED")
    });
    project.flow(&SLURM).success();
    assert_eq!(project.ran(), ["alone"]);
    assert_eq!(cluster.jobs("alone").len(), 1);
}

#[test]
fn a_run_killed_while_it_submits_does_not_submit_twice() {
    let Some(cluster) = cluster() else { return };
    let pipeline = WAITING.replace("slow:", "submitted:");
    let project = Project::with_pipeline(&pipeline).on(&cluster).with_flags();
    project.flag("go");
    let sbatch = cluster.ask("sh", &["-c", "command -v sbatch"]);
    // Slurm has the job, and flow does not live to hear of it. The next run starts while this is still going on.
    let project = project.instead_of(
        "sbatch",
        &format!(
            "if [ -e \"$FLAGS/killed\" ]; then exec {0} \"$@\"; fi\ntouch \"$FLAGS/killed\"; kill -9 $PPID; sleep 1; {0} \"$@\"",
            sbatch.trim()
        ),
    );
    let killed = project.begin().wait_with_output().unwrap();
    assert_eq!(killed.status.code(), None);
    project.flow(&SLURM).success();
    assert!(project.ran().contains(&"submitted".to_owned()));
    assert_eq!(cluster.jobs("submitted").len(), 1);
}

const JUDGED: &str = r#"
models: { wise: { url: "${JUDGE}", name: wise, api_key_env: JUDGE_KEY } }
stages:
  rows: { uses: sql, with: { query: "select range::varchar as id, 'question ' || range || repeat(' and so on', (range % 7)::int) as question from range(200)" } }
  judged: { uses: judge, inputs: { rows: rows }, with: { model: wise, prompt: prompt.md, choices: "[0, 1]", shards: 3 } }
"#;
const PROMPT: &str = "{% block user %}{{ question }}.{% endblock %}\n";

/// A judge behind an address that counts how often each prompt was answered, and answers no more than `most` before it is
/// let go.
struct Counting {
    state: Mutex<Counted>,
    changed: Condvar,
}

struct Counted {
    answers: BTreeMap<String, u32>,
    given: usize,
    most: usize,
}

impl Counting {
    fn start(most: usize) -> (Arc<Self>, String) {
        let counting = Arc::new(Self {
            state: Mutex::new(Counted {
                answers: BTreeMap::new(),
                given: 0,
                most,
            }),
            changed: Condvar::new(),
        });
        let (judge, listener) = (Arc::clone(&counting), Arc::clone(&counting));
        let answer = move |request: &str| {
            let mut state = judge.state.lock().unwrap();
            while state.given >= state.most {
                state = judge.changed.wait(state).unwrap();
            }
            state.given += 1;
            i64::from(request.contains('3'))
        };
        let told = move |request: &str| {
            let mut state = listener.state.lock().unwrap();
            *state.answers.entry(request.to_owned()).or_default() += 1;
        };
        (counting, judge_telling(answer, told))
    }

    fn let_go(&self) {
        self.state.lock().unwrap().most = usize::MAX;
        self.changed.notify_all();
    }

    /// How many prompts were answered, and how many of them more than once.
    fn counts(&self) -> (usize, usize) {
        let state = self.state.lock().unwrap();
        let twice = state.answers.values().filter(|&&times| times > 1).count();
        (state.answers.len(), twice)
    }
}

fn judged(node: &str, address: &str) -> Project {
    Project::with_pipeline(&JUDGED.replace("judged:", &format!("{node}:")))
        .file("prompt.md", PROMPT)
        .variable("JUDGE", address)
        .variable("JUDGE_KEY", "sk-planted-a8f3")
}

#[test]
fn a_judge_in_shards_gives_what_one_gives() {
    let Some(cluster) = cluster() else { return };
    let (_, address) = Counting::start(usize::MAX);
    let local = judged("sharded", &address);
    local.run();
    let (counting, address) = Counting::start(usize::MAX);
    let project = judged("sharded", &address).on(&cluster);
    project.flow(&SLURM).success();
    assert_eq!(digests(&project), digests(&local));
    assert_eq!(counting.counts(), (200, 0));
    let jobs = cluster.jobs("sharded");
    assert_eq!(jobs.len(), 3, "{jobs:?}");
    assert!(project.jobs_left().is_empty());
    // Neither the number of shards nor the place is part of what a verdict is.
    project
        .flow(&["run", "pipelines/p.yaml", "--set", "sharded.with.shards=1"])
        .success();
    assert!(project.ran().is_empty());
}

#[test]
fn a_machine_that_fails_loses_no_verdict() {
    let Some(cluster) = cluster() else { return };
    let (_, address) = Counting::start(usize::MAX);
    let local = judged("powerless", &address);
    local.run();
    // Held in the middle of the work: what is asked then has no answer yet.
    let (counting, address) = Counting::start(80);
    let project = judged("powerless", &address).on(&cluster);
    let run = project.begin();
    wait_for("the judge", || counting.counts().0 == 80);
    // An answer is durable a moment after it is given.
    std::thread::sleep(Duration::from_millis(500));
    let running: Vec<_> = cluster
        .jobs("powerless")
        .into_iter()
        .filter(|(_, state)| state == "RUNNING")
        .collect();
    let machine = cluster.machine(&running[0].0);
    cluster.fail(&machine);
    // The kernel closes the connections of what was killed.
    std::thread::sleep(Duration::from_millis(500));
    counting.let_go();
    let outcome = project.outcome(run.wait_with_output().unwrap());
    cluster.bring_back(&machine);
    let outcome = outcome.success();
    assert_eq!(digests(&project), digests(&local), "{}", outcome.stderr);
    assert_eq!(counting.counts(), (200, 0));
    assert_eq!(
        cluster.jobs("powerless").len(),
        3,
        "{:?}",
        cluster.jobs("powerless")
    );
    project.flow(&["cache", "verify"]).success();
}

#[test]
fn a_secret_reaches_its_job_and_no_file() {
    let Some(cluster) = cluster() else { return };
    let project = Project::with_pipeline(
        "stages:\n  secretive: { uses: command, with: { run: 'test \"$(printf %s \"$TOKEN\" | wc -c)\" = 14; test -z \"$OTHER\"; touch ${FLAGS}/started; while [ ! -e ${FLAGS}/go ]; do sleep 0.05; done', pass_env: [TOKEN] } }\n",
    )
    .on(&cluster)
    .with_flags()
    .variable("TOKEN", "planted-5ecret")
    .variable("OTHER", "not named");
    let run = project.begin();
    wait_for("the script", || project.has("started"));
    let mut found = Vec::new();
    crate::secrets::holding(&project.path("cache"), "planted-5ecret", &mut found);
    crate::secrets::holding(&project.path("runs"), "planted-5ecret", &mut found);
    project.flag("go");
    project.outcome(run.wait_with_output().unwrap()).success();
    assert_eq!(found, Vec::<String>::new());
}

#[test]
fn a_job_that_can_never_start_is_given_up() {
    let Some(cluster) = cluster() else { return };
    let project = Project::with_pipeline(
        "stages:\n  hopeless: { uses: command, with: { run: 'true' }, resources: { partition: short, time: 2h } }\n",
    )
    .on(&cluster);
    let outcome = project.flow(&SLURM).code(1);
    let said = outcome.messages();
    let vain = "waits in vain: PartitionTimeLimit";
    assert!(
        said.contains(vain) && said.contains("help: ask for less"),
        "{said}"
    );
    let states = cluster.jobs("hopeless");
    assert!(
        states.iter().all(|(_, state)| state == "CANCELLED"),
        "{states:?}"
    );
    // What Slurm does not even take.
    for (setting, says) in [
        ("hopeless.resources.partition=nowhere", "`partition`"),
        ("hopeless.resources.memory=9T", "`memory`"),
        ("executor.slurm.options.frobnicate=1", "`options`"),
    ] {
        let main = "hopeless.resources.partition=main";
        let arguments = [&SLURM[..], &["--set", main, "--set", setting]].concat();
        let said = project.flow(&arguments).code(1).messages();
        assert!(
            said.contains("`sbatch` did not take the job") && said.contains(says),
            "{said}"
        );
    }
}

/// Programs of Slurm's names that tell what a test wants to hear.
fn pretended(sbatch: &str, squeue: &str) -> Project {
    Project::with_pipeline("stages:\n  node: { uses: command, with: { run: 'true' } }\n")
        .instead_of("sbatch", sbatch)
        .instead_of("squeue", squeue)
        .instead_of("scancel", "exit 0")
        .instead_of("sacct", "echo 'accounting is disabled' >&2; exit 1")
}

#[test]
fn without_slurm_there_is_one_message() {
    let project = pretended("exit 1", "exit 1").variable("PATH", "/nowhere");
    insta::assert_snapshot!(project.flow(&SLURM).code(1).messages(), @r"
    ✗ node failed after [time]: `sbatch` cannot be started: No such file or directory (os error 2)
    error: `node` failed: `sbatch` cannot be started: No such file or directory (os error 2)
      help: run on a machine of the cluster that has Slurm's commands, or with `--executor local`
    failed in [time]: 1 failed (run [run])
    ");
}

#[test]
fn what_sbatch_says_is_told() {
    let refuses =
        "echo 'sbatch: error: Batch job submission failed: Invalid qos specification' >&2; exit 1";
    let said = pretended(refuses, "exit 1").flow(&SLURM).code(1).messages();
    let first = said.lines().find(|line| line.starts_with("error")).unwrap();
    assert_eq!(
        first,
        "error: `node` failed: `sbatch` did not take the job: Batch job submission failed: Invalid qos specification"
    );
}

#[test]
fn how_a_job_ended_is_told_with_what_it_printed() {
    for (state, says, help) in [
        (
            "OUT_OF_MEMORY",
            "ran out of memory",
            "resources: { memory: … }",
        ),
        (
            "TIMEOUT",
            "came to its time limit",
            "resources: { time: … }",
        ),
        ("CANCELLED", "was cancelled by somebody else", "run again"),
    ] {
        // A job that prints a line and ends as it should not.
        let sbatch = "for a in \"$@\"; do case $a in --output=*) o=${a#--output=};; esac; done; echo 'last words' > \"$(dirname \"$o\")/42.txt\"; echo 42";
        let project = pretended(sbatch, &format!("echo '42|{state}|flow|n7|None'"));
        let said = project.flow(&SLURM).code(1).messages();
        let first = format!("Slurm job 42 on n7 {says}\n  last words");
        assert!(said.contains(&first) && said.contains(help), "{said}");
    }
}
