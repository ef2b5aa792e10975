//! Variants whose nodes are jobs.

use super::SLURM;
use crate::faults::digests_of;
use crate::support::{Outcome, Project, cluster};

/// Two jobs above what differs, one of them in this process.
const SIZES: &str = r#"
stages:
  rows: { uses: sql, with: { query: "select range::varchar as id from range(20)" } }
  common: { uses: command, inputs: { rows: rows }, with: { run: 'sha256sum < $IN_rows > $OUT/sum' } }
  sized: { uses: command, inputs: { common: common }, with: { run: 'head -c $SIZE $IN_common/sum > $OUT/head', env: { SIZE: "1" } } }
  last: { uses: command, inputs: { sized: sized }, with: { run: 'wc -c < $IN_sized/head > $OUT/count' } }
matrix: { sized.with.env.SIZE: ["3", "5"] }
"#;

/// The digests of each variant.
fn variants(project: &Project) -> Vec<Vec<String>> {
    let group = project
        .flow(&["compare", "latest", "--json"])
        .success()
        .json();
    let id = group["id"].as_str().unwrap();
    let count = group["variants"].as_array().unwrap().len();
    let record = |number| {
        project
            .flow(&["show", &format!("{id}-{number}"), "--json"])
            .success()
            .json()
    };
    (1..=count)
        .map(|number| digests_of(&record(number)))
        .collect()
}

#[test]
fn variants_share_the_jobs_of_what_is_the_same() {
    let Some(cluster) = cluster() else { return };
    let local = Project::with_pipeline(SIZES);
    local.run();
    let project = Project::with_pipeline(SIZES).on(&cluster);
    project.flow(&SLURM).success();
    let found = variants(&project);
    assert_eq!(found, variants(&local));
    assert_ne!(found[0], found[1]);
    let count = |node: &str| cluster.jobs(node).len();
    assert_eq!((count("rows"), count("common")), (0, 1));
    for size in [3, 5] {
        assert_eq!(count(&format!("sized@SIZE={size}")), 1);
        assert_eq!(count(&format!("last@SIZE={size}")), 1);
    }
    assert!(project.jobs_left().is_empty());
    // Nothing is left to do, here or there.
    project.flow(&SLURM).success();
    project.run();
    assert_eq!(count("sized@SIZE=3"), 1);
}

#[test]
fn a_variant_that_fails_takes_no_other_with_it() {
    let Some(cluster) = cluster() else { return };
    let project = Project::with_pipeline(
        &SIZES
            .replace("sized", "fragile")
            .replace("common", "shared")
            .replace("last", "end")
            .replace("head -c", "test $SIZE != 5; head -c"),
    )
    .on(&cluster);
    let outcome = project.flow(&SLURM).code(1);
    let said = |outcome: &Outcome, part: &str| outcome.stderr.contains(part);
    assert!(
        said(&outcome, "`fragile@SIZE=5` failed"),
        "{}",
        outcome.stderr
    );
    assert!(said(&outcome, "✓ end@SIZE=3"), "{}", outcome.stderr);
    assert!(!said(&outcome, "✓ end@SIZE=5"), "{}", outcome.stderr);
    assert_eq!(cluster.jobs("shared").len(), 1);
}

#[test]
fn a_job_of_two_axes_is_found_by_its_name() {
    let Some(cluster) = cluster() else { return };
    let project = Project::with_pipeline(
        "stages:\n  paired: { uses: command, with: { run: 'echo $A $B > $OUT/x', env: { A: '', B: '' } } }\nmatrix: { paired.with.env.A: [a, b], paired.with.env.B: [c, \"d|e\"] }\n",
    )
    .on(&cluster)
    .with_flags()
    .killing_while_it_submits(&cluster);
    let killed = project.begin().wait_with_output().unwrap();
    assert_eq!(killed.status.code(), None);
    project.flow(&SLURM).success();
    let names = cluster.ask("squeue", &["--states=all", "--noheader", "--format=%j"]);
    let ours = names.lines().filter(|name| name.contains("-paired@"));
    assert_eq!(ours.count(), 4, "{names}");
}
