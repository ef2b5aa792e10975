//! A cache that is used for long: large results, many runs, a cap on its size.

use std::fmt::Write;

use crate::support::Project;

/// Nodes that give a sparse file each; `SOAK_MIB` makes them large (`make soak`).
const NODES: usize = 10;

fn mib() -> u64 {
    std::env::var("SOAK_MIB").map_or(16, |number| number.parse().expect("SOAK_MIB is a number"))
}

/// A pipeline whose files are all other ones in each `edition`, but for the first node's.
fn pipeline(edition: usize) -> String {
    let mib = mib();
    let mut text = "name: large\nstages:\n".to_owned();
    for node in 0..NODES {
        let edition = if node == 0 { 0 } else { edition };
        writeln!(
            text,
            "  n{node}: {{ uses: command, with: {{ run: 'truncate -s {mib}M $OUT/sparse; echo {node} {edition} > $OUT/name' }} }}"
        )
        .unwrap();
    }
    text
}

/// Which of the editions the cache still has whole, as the plan tells.
fn kept(project: &Project, editions: usize) -> Vec<usize> {
    let whole = |edition: &usize| {
        project.write("pipelines/p.yaml", pipeline(*edition));
        let plan = project
            .flow(&["plan", "pipelines/p.yaml", "--json"])
            .success()
            .json();
        let nodes = plan["nodes"].as_array().unwrap();
        nodes.iter().all(|node| node["state"] == "cached")
    };
    (0..editions).filter(whole).collect()
}

/// With the cap, runs are kept whole, the latest first, and the cache is no larger than it may be.
#[test]
fn a_cap_on_the_size_keeps_whole_runs() {
    const EDITIONS: usize = 5;
    let project = Project::new();
    for edition in 0..EDITIONS {
        project.write("pipelines/p.yaml", pipeline(edition));
        project.run();
    }
    let edition_bytes = mib() * NODES as u64;
    let gc = |arguments: &[&str]| {
        let arguments = [&["cache", "gc", "--json"], arguments].concat();
        project.flow(&arguments).success().json()
    };
    assert_eq!(gc(&["--keep-runs", "4"])["kept_runs"], 4);
    assert_eq!(kept(&project, EDITIONS), [1, 2, 3, 4]);
    // Room for two and a half.
    let cap = format!("{}MiB", edition_bytes * 5 / 2);
    let collected = gc(&["--keep-runs", "20", "--max-size", &cap]);
    assert_eq!(collected["kept_runs"], 2);
    assert_eq!(kept(&project, EDITIONS), [3, 4]);
    assert!(collected["kept_bytes"].as_u64().unwrap() <= (edition_bytes * 5 / 2) << 20);
    let size = project.flow(&["cache", "--json"]).success().json();
    assert_eq!(size["objects"], 2 * NODES - 1);
    let verified = project
        .flow(&["cache", "verify", "--json"])
        .success()
        .json();
    assert_eq!(verified["damaged"].as_array().unwrap().len(), 0);

    let tight = project
        .flow(&["cache", "gc", "--max-size", "1MiB"])
        .success();
    assert_eq!(kept(&project, EDITIONS), [4]);
    assert!(
        tight.stderr.contains("the latest run alone needs"),
        "{}",
        tight.stderr
    );
}
