//! Runs that are interrupted or killed while their jobs are at work.

use std::time::Duration;

use rustix::process::Signal;

use super::{SLURM, kill, wait_for};
use crate::support::{Project, cluster};

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
    let project = Project::with_pipeline(&pipeline)
        .on(&cluster)
        .with_flags()
        .killing_while_it_submits(&cluster);
    project.flag("go");
    let killed = project.begin().wait_with_output().unwrap();
    assert_eq!(killed.status.code(), None);
    project.flow(&SLURM).success();
    assert!(project.ran().contains(&"submitted".to_owned()));
    assert_eq!(cluster.jobs("submitted").len(), 1);
}
