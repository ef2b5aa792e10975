//! Jobs that fail, are refused, or end as they should not.

use super::SLURM;
use crate::support::{Project, cluster};

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

/// A job that prints a line and ends as it should not.
const PRINTING: &str = "for a in \"$@\"; do case $a in --output=*) o=${a#--output=};; esac; done; echo 'last words' > \"$(dirname \"$o\")/42.txt\"; echo 42";

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
        let project = pretended(PRINTING, &format!("echo '42|{state}|flow|n7|None'"));
        let said = project.flow(&SLURM).code(1).messages();
        let first = format!("Slurm job 42 on n7 {says}\n  last words");
        assert!(said.contains(&first) && said.contains(help), "{said}");
    }
}

#[test]
fn what_a_failed_job_printed_is_kept_until_its_node_has_a_result() {
    let project = pretended(PRINTING, "echo '42|FAILED|flow|n7|NonZeroExitCode'").file(
        "pipelines/other.yaml",
        "stages:\n  other: { uses: sql, with: { query: 'select 1 as n' } }\n",
    );
    let said = project.flow(&SLURM).code(1).messages();
    assert!(said.contains("what it printed is kept in `"), "{said}");
    let kept = || -> Vec<_> {
        let folders = std::fs::read_dir(project.path("cache/jobs")).unwrap();
        folders.map(|folder| folder.unwrap().path()).collect()
    };
    let [folder] = &kept()[..] else {
        panic!("{:?}", kept())
    };
    let name = folder.file_name().unwrap().to_str().unwrap();
    assert!(said.contains(&format!("{name}/log`")), "{said}");
    let printed = std::fs::read_to_string(folder.join("log/42.txt")).unwrap();
    assert_eq!(printed, "last words\n");
    assert!(!folder.join("tasks").exists());
    // Other runs leave it, and so does a node that is still without a result.
    project.flow(&["run", "pipelines/other.yaml"]).success();
    project.flow(&SLURM).code(1);
    assert_eq!(kept().len(), 1);
    project.run();
    assert_eq!(kept().len(), 0);
}
