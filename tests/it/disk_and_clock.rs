//! Nothing is lost or mixed up on a disk that fails here and there, on a slow one, on a full one, or when the clock goes back.

use crate::faults::{assert_recovers, digests, mixed, undisturbed, wanted};
use crate::support::{Project, faulty};

fn run_on(project: &Project, faults: &[(&str, &str)]) -> std::process::Output {
    let mut command = project.command(&["run", "pipelines/p.yaml"]);
    faulty(&mut command, faults).output().unwrap()
}

/// Every write, sync and rename of flow, of the database and of the scripts may fail, up to three runs in a row.
#[test]
#[expect(
    clippy::print_stdout,
    reason = "the counts are what the campaign is run for"
)]
fn a_disk_that_fails_at_random_loses_nothing() {
    let undisturbed = undisturbed();
    let (mut failed, mut passed) = (0, 0);
    for seed in 0..u64::from(wanted()) {
        let project = mixed();
        for attempt in 0..3 {
            // From a disk that hardly works to one that fails a few times in a run.
            let one_in = [20, 60, 200][(seed % 3) as usize];
            let fault = format!("{}:{one_in}", seed * 3 + attempt);
            let output = run_on(&project, &[("FAULTY_EIO", &fault)]);
            let said = String::from_utf8_lossy(&output.stderr);
            match output.status.code() {
                Some(0) => passed += 1,
                Some(1) => {
                    failed += 1;
                    assert!(said.contains("error: "), "FAULTY_EIO={fault}:\n{said}");
                }
                code => panic!("FAULTY_EIO={fault}: {code:?}\n{said}"),
            }
            assert!(!said.contains("panicked"), "FAULTY_EIO={fault}:\n{said}");
        }
        assert_recovers(&project, &undisturbed, &format!("errors with seed {seed}"));
    }
    println!("{failed} runs failed and {passed} got through, no difference");
    assert!(failed > 0, "the disk never failed");
}

#[test]
fn a_slow_disk_is_waited_for() {
    let undisturbed = undisturbed();
    let project = mixed();
    let output = run_on(&project, &[("FAULTY_DELAY", "5000")]);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_recovers(&project, &undisturbed, "a slow disk");
}

/// The last run is the latest, edits are seen and results are kept, whatever the clock says.
#[test]
fn a_clock_that_goes_back_changes_nothing() {
    const HOUR_LATE: (&str, &str) = ("FAULTY_CLOCK", "-3600");
    let undisturbed = undisturbed();
    let project = mixed();
    // It goes back an hour in the middle of the first run, and stays so.
    assert!(
        run_on(&project, &[("FAULTY_JUMP", "100:-3600")])
            .status
            .success()
    );
    let first = project.latest();
    assert_eq!(digests(&project), undisturbed);
    assert!(run_on(&project, &[HOUR_LATE]).status.success());
    assert_eq!(project.ran(), Vec::<String>::new());
    assert_ne!(project.latest()["id"], first["id"]);

    let rows = std::fs::read_to_string(project.path("rows.csv")).unwrap();
    project.write("rows.csv", rows.replace("question 7", "Question 7"));
    assert!(run_on(&project, &[HOUR_LATE]).status.success());
    assert_eq!(
        project.ran(),
        ["both", "files", "judged", "kept", "rows"],
        "the edit was not seen"
    );
    let edited = digests(&project);
    let mut collect = project.command(&["cache", "gc", "--keep-runs", "1"]);
    assert!(
        faulty(&mut collect, &[HOUR_LATE])
            .status()
            .unwrap()
            .success()
    );
    assert_recovers(&project, &edited, "a clock that went back");
}

/// A cache on a small memory disk of its own, which is then made larger; sizes at which all kinds of writes find no room.
#[test]
#[expect(clippy::print_stdout, reason = "a test that cannot run must say so")]
fn a_full_disk_loses_nothing_once_there_is_room() {
    const SCRIPT: &str = r#"
        mkdir cache && mount -t tmpfs -o size="$1" none cache || exit 99
        "$FLOW" run pipelines/p.yaml; first=$?
        mount -o remount,size=100m cache || exit 98
        "$FLOW" run pipelines/p.yaml || exit 97
        "$FLOW" cache verify || exit 96
        test -z "$(ls cache/partial)" || exit 95
        exit $first
    "#;
    let undisturbed = undisturbed();
    let mut full = 0;
    for size in ["8k", "16k", "24k", "32k", "40k", "48k", "56k", "64k", "72k"] {
        let project = mixed();
        let flow = project.command(&[]);
        let mut command = std::process::Command::new("unshare");
        command.args([
            "--user",
            "--map-root-user",
            "--mount",
            "sh",
            "-c",
            SCRIPT,
            "sh",
            size,
        ]);
        command.current_dir(project.path(""));
        for (name, value) in flow.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let output = command.env("FLOW", flow.get_program()).output();
        let said = output.as_ref().map_or_else(ToString::to_string, |output| {
            String::from_utf8_lossy(&output.stderr).into_owned()
        });
        match output.ok().and_then(|output| output.status.code()) {
            Some(0) => {}
            Some(1) if said.contains("No space left") || said.contains("disk is full") => full += 1,
            Some(95..=98) | Some(1) => panic!("with {size}: {said}"),
            _ => {
                println!("skipped: no memory disk can be mounted here: {said}");
                return;
            }
        }
        assert_eq!(digests(&project), undisturbed, "with {size}: {said}");
    }
    assert!(full > 2, "the disk was full {full} times");
}
