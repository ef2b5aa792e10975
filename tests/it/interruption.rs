//! Ctrl-C, `kill -9`, and two runs at once.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::Project;

/// A quick stage and one that waits for the file `go`.
const WAITING: &str = "\
stages:
  quick: { uses: command, with: { run: 'echo 1 > $OUT/x' } }
  slow: { uses: command, with: { run: 'touch ${FLAGS}/started; while [ ! -e ${FLAGS}/go ]; do sleep 0.05; done; echo 2 > $OUT/x' }, inputs: { q: quick } }
";

fn start(project: &Project) -> Child {
    let mut command = project.command(&["run", "pipelines/p.yaml"]);
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for(|| project.path("flags/started").exists());
    child
}

fn waiting() -> Project {
    let project = Project::with_pipeline(WAITING);
    std::fs::create_dir(project.path("flags")).unwrap();
    let flags = project.path("flags").display().to_string();
    project.variable("FLAGS", &flags)
}

#[track_caller]
fn wait_for(mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !done() {
        assert!(Instant::now() < deadline, "waited too long");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What a run would do with a node now.
fn state(project: &Project, node: usize) -> String {
    let plan = project
        .flow(&["plan", "pipelines/p.yaml", "--json"])
        .success();
    plan.json()["nodes"][node]["state"]
        .as_str()
        .unwrap()
        .to_owned()
}

fn signal(child: &Child, name: &str) {
    let status = Command::new("kill")
        .args([name, &child.id().to_string()])
        .status()
        .unwrap();
    assert!(status.success());
}

#[test]
fn ctrl_c_once_stops_and_the_next_run_goes_on() {
    let project = waiting();
    let child = start(&project);
    signal(&child, "-INT");
    let outcome = project.outcome(child.wait_with_output().unwrap()).code(130);
    assert!(
        outcome
            .stderr
            .contains("the same command goes on from here"),
        "{}",
        outcome.stderr
    );
    assert_eq!(project.latest()["state"], "interrupted");
    std::fs::write(project.path("flags/go"), "").unwrap();
    project.flow(&["plan", "pipelines/p.yaml"]).success();
    project.run();
    assert_eq!(project.ran(), ["slow"]);
    assert_eq!(project.with_status("cached"), ["quick"]);
}

#[test]
fn a_killed_run_is_shown_as_interrupted_and_resumed() {
    let project = waiting();
    let mut child = start(&project);
    // Events reach the record within a fifth of a second, and results the disk.
    wait_for(|| project.latest()["unfinished"][0] == "slow");
    wait_for(|| state(&project, 0) == "cached");
    signal(&child, "-KILL");
    child.wait().unwrap();
    assert_eq!(project.latest()["state"], "interrupted");
    assert_eq!(project.latest()["unfinished"][0], "slow");
    std::fs::write(project.path("flags/go"), "").unwrap();
    project.run();
    assert_eq!(project.ran(), ["slow"]);
}

/// Writes half of its output, starts a process that goes on without it, and waits the first time.
const HALF: &str = "\
stages:
  quick: { uses: command, with: { run: 'echo 1 > $OUT/x' } }
  half:
    uses: command
    inputs: { q: quick }
    with:
      run: |
        echo first >> $OUT/x
        if [ ! -e ${FLAGS}/go ]; then
          (while :; do echo orphan >> $OUT/x; sleep 0.02; done) &
          echo $! > ${FLAGS}/orphan
          touch ${FLAGS}/started
          wait
        fi
        echo second >> $OUT/x
";

#[test]
fn a_kill_leaves_neither_half_a_result_nor_a_writer() {
    let project = Project::with_pipeline(HALF);
    std::fs::create_dir(project.path("flags")).unwrap();
    let flags = project.path("flags").display().to_string();
    let project = project.variable("FLAGS", &flags);
    let mut child = start(&project);
    wait_for(|| state(&project, 0) == "cached");
    let orphan = std::fs::read_to_string(project.path("flags/orphan")).unwrap();
    assert!(is_alive(orphan.trim()));
    signal(&child, "-KILL");
    child.wait().unwrap();
    wait_for(|| !is_alive(orphan.trim()));
    assert_eq!(state(&project, 1), "will_run");
    std::fs::write(project.path("flags/go"), "").unwrap();
    project.run();
    assert_eq!(project.ran(), ["half"]);
    project
        .flow(&["data", "latest", "half", "--export", "result"])
        .success();
    assert_eq!(
        std::fs::read_to_string(project.path("result/x")).unwrap(),
        "first\nsecond\n"
    );
    project.flow(&["cache", "verify"]).success();
}

/// Whether a process is there and no zombie (proc(5)).
fn is_alive(pid: &str) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        stat.rsplit_once(')')
            .is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
    })
}

/// A limit on the size of files stands in for a full disk: writes fail in the middle.
#[test]
fn a_commit_that_finds_no_room_loses_nothing() {
    let project = Project::with_pipeline(
        "stages:
  small: { uses: sql, with: { query: 'select 1 as n' } }
  large: { uses: sql, with: { query: 'select n, md5((n + i)::varchar) as text from small, range(200000) t(i)' }, inputs: { small: small } }
",
    );
    project
        .flow(&["run", "pipelines/p.yaml", "--until", "small"])
        .success();
    let mut limited = Command::new("sh");
    limited
        .args([
            "-c",
            "trap '' XFSZ; ulimit -f 4000; exec \"$0\" run pipelines/p.yaml",
        ])
        .arg(env!("CARGO_BIN_EXE_flow"))
        .current_dir(project.path(""))
        .env("NO_COLOR", "1");
    let outcome = project.outcome(limited.output().unwrap()).code(1);
    let errors: Vec<&str> = outcome
        .stderr
        .lines()
        .filter(|line| line.starts_with("error:"))
        .collect();
    assert_eq!(errors.len(), 1, "{}", outcome.stderr);
    insta::assert_snapshot!(errors[0], @"error: `large` failed: there is no room for `cache/flow.duckdb`: File too large");
    project.run();
    assert_eq!(project.ran(), ["large"]);
    assert_eq!(project.with_status("cached"), ["small"]);
    project.flow(&["cache", "verify"]).success();
}

#[test]
fn a_second_run_waits_and_says_for_whom() {
    let project = waiting();
    let first = start(&project);
    assert_eq!(project.latest()["state"], "running");
    let mut second = project
        .command(&["run", "pipelines/p.yaml"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut told = String::new();
    BufReader::new(second.stderr.as_mut().unwrap())
        .read_line(&mut told)
        .unwrap();
    assert!(told.contains("is used by run "), "{told}");
    // Looking in does not wait.
    project.flow(&["show"]).success();
    std::fs::write(project.path("flags/go"), "").unwrap();
    project.outcome(first.wait_with_output().unwrap()).success();
    project
        .outcome(second.wait_with_output().unwrap())
        .success();
    assert!(project.ran().is_empty());
}
