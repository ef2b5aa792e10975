//! Nothing is lost, doubled or half served, wherever flow is killed and whatever the disk answers.

use std::os::unix::process::ExitStatusExt;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use flow::failpoint::PLACES;

use crate::support::{Project, judge};

/// Files, tables and verdicts, in a chain and beside each other.
const MIXED: &str = r#"
name: mixed
models: { wise: { url: "${JUDGE}", name: wise } }
stages:
  rows: { uses: source, with: { path: rows.csv } }
  files: { uses: command, inputs: { rows: rows }, with: { run: 'for n in 1 2 3; do echo $n > $OUT/$n; done; wc -c < $IN_rows > $OUT/size' } }
  judged: { uses: judge, inputs: { rows: rows }, with: { model: wise, prompt: prompt.md, choices: "[0, 1]" } }
  kept: { uses: sql, inputs: { rows: rows, judged: judged }, with: { query: 'select rows.* from rows join judged using (id) where choice = 1 order by id' } }
  both: { uses: command, inputs: { files: files, kept: kept }, with: { run: 'cp -r $IN_files $OUT/files; cat $IN_files/size > $OUT/total' } }
  counted: { uses: sql, inputs: { kept: kept }, with: { query: 'select count(*) as n from kept' } }
"#;

pub fn mixed() -> Project {
    let rows: String = (0..40).map(|n| format!("r{n:02},question {n}\n")).collect();
    Project::with_pipeline(MIXED)
        .file("rows.csv", &format!("id,question\n{rows}"))
        .file(
            "prompt.md",
            "{% block user %}{{ question }}{% endblock %}\n",
        )
        .variable("JUDGE", &judge(|asked| i64::from(asked.contains('3'))))
}

fn run_with(project: &Project, failpoints: &str) -> Output {
    let mut command = project.command(&["run", "pipelines/p.yaml"]);
    command.env("FLOW_FAILPOINTS", failpoints).output().unwrap()
}

/// Node, output and digest of everything the latest run gave.
pub fn digests(project: &Project) -> Vec<String> {
    digests_of(&project.latest())
}

/// The same of a run's record.
pub fn digests_of(run: &serde_json::Value) -> Vec<String> {
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

/// After whatever happened: the same command ends well, with what an undisturbed run gives, and a cache without a fault.
#[track_caller]
pub fn assert_recovers(project: &Project, undisturbed: &[String], what: &str) {
    let outcome = project.flow(&["run", "pipelines/p.yaml"]);
    assert_eq!(outcome.code, 0, "after {what}:\n{}", outcome.stderr);
    assert_eq!(digests(project), undisturbed, "after {what}");
    project.flow(&["cache", "verify"]).success();
    let partial = std::fs::read_dir(project.path("cache/partial")).unwrap();
    assert_eq!(partial.count(), 0, "scratch is left after {what}");
    project.run();
    assert_eq!(project.ran(), Vec::<String>::new(), "after {what}");
}

pub fn undisturbed() -> Vec<String> {
    let project = mixed();
    project.run();
    digests(&project)
}

#[test]
fn a_kill_at_every_place_loses_nothing() {
    let undisturbed = undisturbed();
    for place in PLACES {
        let project = mixed();
        let what = format!("{place}=kill");
        let killed = run_with(&project, &what);
        let said = String::from_utf8_lossy(&killed.stderr);
        assert_eq!(
            killed.status.signal(),
            Some(9),
            "{what} was not reached: {said}"
        );
        assert_recovers(&project, &undisturbed, &what);
    }
}

#[test]
fn a_disk_that_fails_at_any_place_loses_nothing() {
    let undisturbed = undisturbed();
    for (place, error) in PLACES
        .into_iter()
        .zip(["eio", "enospc"].into_iter().cycle())
    {
        let project = mixed();
        let what = format!("{place}={error}");
        let failed = run_with(&project, &what);
        let said = String::from_utf8_lossy(&failed.stderr);
        let code = failed.status.code();
        assert!(matches!(code, Some(0 | 1)), "{what}: {code:?}\n{said}");
        assert!(!said.contains("panicked"), "{what}:\n{said}");
        assert_recovers(&project, &undisturbed, &what);
    }
}

#[test]
fn a_damaged_database_is_made_anew_from_what_lies_beside_it() {
    let undisturbed = undisturbed();
    let project = mixed();
    let database = project.path("cache/flow.duckdb");
    for damage in ["zeroed", "cut off", "gone"] {
        project.run();
        let length = std::fs::metadata(&database).unwrap().len();
        match damage {
            "zeroed" => std::fs::write(&database, vec![0; length as usize]).unwrap(),
            "cut off" => std::fs::File::options()
                .write(true)
                .open(&database)
                .unwrap()
                .set_len(length / 3)
                .unwrap(),
            _ => std::fs::remove_file(&database).unwrap(),
        }
        if damage != "gone" {
            let looked = project.flow(&["plan", "pipelines/p.yaml"]).code(1);
            assert!(looked.stderr.contains("is damaged"), "{}", looked.stderr);
        }
        let outcome = project.run();
        assert!(
            outcome
                .stderr
                .contains("2 results in files and 40 verdicts were taken over"),
            "{damage}: {}",
            outcome.stderr
        );
        assert_eq!(
            project.ran(),
            ["counted", "judged", "kept", "rows"],
            "{damage}"
        );
        assert_eq!(project.with_status("cached"), ["both", "files"], "{damage}");
        let judged = project.latest();
        let judged = judged["nodes"]
            .as_array()
            .unwrap()
            .iter()
            .find(|node| node["name"] == "judged");
        assert_eq!(judged.unwrap()["metrics"]["asked"], 0.0, "{damage}");
        assert_eq!(digests(&project), undisturbed, "{damage}");
        project.flow(&["cache", "verify"]).success();
    }
}

#[test]
fn what_somebody_changed_in_the_cache_is_noticed_and_made_again() {
    let undisturbed = undisturbed();
    let project = mixed();
    project.run();
    for object in std::fs::read_dir(project.path("cache/objects")).unwrap() {
        for file in std::fs::read_dir(object.unwrap().path()).unwrap() {
            let path = file.unwrap().path();
            if path.is_file() {
                std::fs::remove_file(&path).unwrap();
                std::fs::write(&path, "tampered").unwrap();
            }
        }
    }
    let verified = project.flow(&["cache", "verify"]);
    assert_eq!(verified.code, 1, "{}", verified.stdout);
    assert!(verified.stdout.contains("2 damaged"), "{}", verified.stdout);
    assert_recovers(&project, &undisturbed, "tampering");
}

#[test]
fn ten_runs_at_once_work_once() {
    let project = mixed();
    let start = || {
        let mut command = project.command(&["run", "pipelines/p.yaml"]);
        command
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let runs: Vec<_> = (0..10).map(|_| start()).collect();
    let said: Vec<String> = runs
        .into_iter()
        .map(|run| {
            project
                .outcome(run.wait_with_output().unwrap())
                .success()
                .stderr
        })
        .collect();
    let with = |what: &str| said.iter().filter(|said| said.contains(what)).count();
    assert_eq!((with(": 6 ran"), with(": 6 cached")), (1, 9), "{said:#?}");
    project.flow(&["cache", "verify"]).success();
}

#[test]
fn a_cache_that_cannot_be_written_says_so() {
    let project = mixed();
    std::fs::write(project.path("file"), "").unwrap();
    let project = project.variable("FLOW_CACHE", "file/cache");
    let outcome = project.flow(&["run", "pipelines/p.yaml"]);
    assert_eq!(outcome.code, 1);
    insta::assert_snapshot!(outcome.messages(), @r"
    error: failed to create directory `file/cache`: Not a directory (os error 20)
      help: make the folder writable, or name another cache folder with `FLOW_CACHE`
    ");
}

#[test]
fn a_cache_of_a_newer_flow_is_left_alone() {
    let project = mixed();
    project.run();
    project.write("cache/layout", "99\n");
    let outcome = project.flow(&["run", "pipelines/p.yaml"]).code(1);
    insta::assert_snapshot!(outcome.messages(), @r"
    error: the cache `cache` has layout 99; this flow knows layouts up to 1
      help: use the newer flow that wrote it, or another cache folder (`FLOW_CACHE`)
    ");
}

/// Kills at random moments of the whole run, ten in a row on each cache, until there were `wanted`.
#[expect(
    clippy::print_stdout,
    reason = "the counts are what the campaign is run for"
)]
fn campaign(make: impl Fn() -> Project, wanted: u32) {
    let project = make();
    let start = Instant::now();
    project.run();
    let mut whole = start.elapsed();
    let undisturbed = digests(&project);
    // xorshift64 (Marsaglia 2003).
    let mut state: u64 = 0x9E37_79B9_7F4A_7C15;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 53) as f64
    };
    let (mut kills, mut caches) = (0, 0);
    while kills < wanted {
        let project = make();
        caches += 1;
        for attempt in 0..10 {
            let mut command = project.command(&["run", "pipelines/p.yaml"]);
            command.stdout(Stdio::null()).stderr(Stdio::null());
            let mut child = command.spawn().unwrap();
            let begun = Instant::now();
            let due = begun + whole.mul_f64(random());
            while Instant::now() < due && child.try_wait().unwrap().is_none() {
                std::thread::sleep(Duration::from_millis(1));
            }
            child.kill().unwrap();
            if child.wait().unwrap().signal() != Some(9) {
                if attempt == 0 {
                    // A whole run, and quicker than the first was.
                    whole = whole.min(begun.elapsed());
                }
                break;
            }
            kills += 1;
        }
        assert_recovers(&project, &undisturbed, "random kills");
        println!("{kills} kills on {caches} caches, no difference");
    }
}

/// A few, so that the tests stay quick; `make faults` asks for hundreds.
pub fn wanted() -> u32 {
    std::env::var("KILLS").map_or(10, |number| number.parse().expect("KILLS is a number"))
}

#[test]
fn random_kills_lose_nothing() {
    campaign(mixed, wanted());
}

/// The same with a judge and a training run of a tiny language model.
#[cfg(feature = "torch")]
#[test]
fn random_kills_of_a_training_run_lose_nothing() {
    campaign(|| crate::language_model::medical(24), wanted().div_ceil(5));
}
