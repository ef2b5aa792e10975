//! `matrix:`: variants that share what is the same.

use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{KEY, Outcome, Project, TrackingServer};

/// Rows that all variants share, a choice of them by one axis, answers by the other.
pub const PIPELINE: &str = "\
name: words
seed: 3
stages:
  rows: { uses: source, with: { path: rows.csv } }
  few: { uses: sql, inputs: { rows: rows.rows }, with: { query: \"select * from rows where n <= $most\", params: { most: 2 } } }
  answers: { uses: sql, inputs: { rows: few }, with: { query: \"select id, word as reference, case when n > $from then word else 'other' end as prediction from rows\", params: { from: 1 } } }
  score: { uses: score, inputs: { rows: answers } }
";

pub fn project(matrix: &str) -> Project {
    Project::with_pipeline(&format!("{PIPELINE}{matrix}")).file(
        "rows.csv",
        "id,word,n\na,one,1\nb,two,2\nc,three,3\nd,four,4\n",
    )
}

const TWO_AXES: &str = "\
matrix:
  few.with.params.most: [2, 3]
  answers.with.params.from: [0, 1]
";

/// The nodes that a run executed, from its messages: `✓ few@most=2  3 ms …`.
fn executed(outcome: &Outcome) -> Vec<String> {
    let node = |line: &str| {
        let rest = line.strip_prefix("✓ ")?;
        Some(rest.split(' ').next()?.to_owned())
    };
    let mut nodes: Vec<String> = outcome.stderr.lines().filter_map(node).collect();
    nodes.sort();
    nodes
}

/// The records of the latest matrix, in the order of its variants.
fn group(project: &Project) -> Value {
    project
        .flow(&["compare", "latest", "--json"])
        .success()
        .json()
}

fn record(project: &Project, id: &str) -> Value {
    project.flow(&["show", id, "--json"]).success().json()
}

#[test]
fn shared_nodes_run_once_and_each_variant_is_a_run() {
    let project = project(TWO_AXES);
    let outcome = project.run();
    assert_eq!(
        executed(&outcome),
        [
            "answers@most=2,from=0",
            "answers@most=2,from=1",
            "answers@most=3,from=0",
            "answers@most=3,from=1",
            "few@most=2",
            "few@most=3",
            "rows",
            "score@most=2,from=0",
            "score@most=2,from=1",
            "score@most=3,from=0",
            "score@most=3,from=1",
        ]
    );
    let group = group(&project);
    let variants = group["variants"].as_array().unwrap();
    assert_eq!(variants.len(), 4);
    let id = group["id"].as_str().unwrap();
    let params = |row: &Value| row["params"].clone();
    assert_eq!(
        variants.iter().map(params).collect::<Vec<_>>(),
        [json!([2, 0]), json!([2, 1]), json!([3, 0]), json!([3, 1])]
    );
    assert!(
        variants
            .iter()
            .all(|row| row["nodes"] == 4 && row["own_nodes"] == 2)
    );
    // Each is a run as it would be without a matrix: names, results, exports.
    let second = record(&project, &format!("{id}-2"));
    let names: Vec<_> = second["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|node| node["name"].clone())
        .collect();
    assert_eq!(names, ["rows", "few", "answers", "score"]);
    assert_eq!(second["variant"]["label"], "most=2,from=1");
    assert_eq!(second["variant"]["group"], id);
    assert_eq!(second["state"], "finished");
    let rows = project
        .flow(&["data", &format!("{id}-2"), "few", "--json"])
        .success()
        .json();
    assert_eq!(rows.as_array().unwrap().len(), 2);

    // The same values by hand are the same nodes.
    project
        .flow(&[
            "run",
            "pipelines/p.yaml",
            "--set",
            "few.with.params.most=3",
            "--set",
            "answers.with.params.from=1",
        ])
        .success();
    assert_eq!(project.ran(), [""; 0]);
    // Nothing is left to do.
    let plan = project
        .flow(&["plan", "pipelines/p.yaml", "--json", "--exit-code"])
        .success()
        .json();
    assert_eq!(
        (&plan["cached"], &plan["variants"][3]["nodes"][3]),
        (&json!(11), &json!("score@most=3,from=1"))
    );
}

#[test]
fn a_changed_value_runs_its_variant_and_a_new_one_only_itself() {
    let project = project("matrix: { few.with.params.most: [1, 2] }\n");
    project.run();
    project.write(
        "pipelines/p.yaml",
        format!("{PIPELINE}matrix: {{ few.with.params.most: [1, 3] }}\n"),
    );
    assert_eq!(
        executed(&project.run()),
        ["answers@most=3", "few@most=3", "score@most=3"]
    );
    project.write(
        "pipelines/p.yaml",
        format!("{PIPELINE}matrix: {{ few.with.params.most: [1, 3, 4] }}\n"),
    );
    assert_eq!(
        executed(&project.run()),
        ["answers@most=4", "few@most=4", "score@most=4"]
    );
    // Equal results end it, as in any run.
    project.write(
        "pipelines/p.yaml",
        format!("{PIPELINE}matrix: {{ few.with.params.most: [4, 5] }}\n"),
    );
    assert_eq!(executed(&project.run()), ["few@most=5"]);
    // The command line may say it as well.
    project.write("pipelines/p.yaml", PIPELINE);
    let outcome = project
        .flow(&[
            "run",
            "pipelines/p.yaml",
            "--matrix",
            "few.with.params.most=1,2,5",
        ])
        .success();
    assert_eq!(executed(&outcome), [""; 0]);
    assert_eq!(group(&project)["variants"].as_array().unwrap().len(), 3);
}

#[test]
fn one_table_compares_the_variants() {
    let project = project(TWO_AXES);
    project.run();
    let outcome = project.flow(&["compare", "latest"]).success();
    insta::assert_snapshot!(outcome.results(), @r"
    matrix [run] of words: 4 variants
        most   from   exact_match    f1             rows   exact_match_low   own nodes   own time
    ───────────────────────────────────────────────────────────────────────────────────────────────
    1      2      0   100.0 *        100.0 *        2      100.0 *           2 of 4      [time]
    2      2      1   50.0 −50.0     50.0 −50.0     2 ±0   0.0 −100.0        2 of 4      [time]
    3      3      0   100.0 ±0.0 *   100.0 ±0.0 *   3 +1   100.0 ±0.0 *      2 of 4      [time]
    4      3      1   66.7 −33.3     66.7 −33.3     3 +1   0.0 −100.0        2 of 4      [time]
    * the best; differences are from the first variant
    no room for `f1_low`; `flow compare [run] --html FILE` shows all
    ");
    assert!(
        outcome
            .stdout
            .lines()
            .all(|line| line.chars().count() <= 100 || line.starts_with("no room"))
    );
    let id = group(&project)["id"].as_str().unwrap().to_owned();
    project
        .flow(&["compare", &id, "--html", "group.html"])
        .success();
    let page = std::fs::read_to_string(project.path("group.html")).unwrap();
    for part in [&id, "few.with.params.most", "score.f1", "<b>100.0</b>"] {
        assert!(page.contains(part), "{part} in {page}");
    }
    insta::assert_snapshot!(project.flow(&["runs"]).success().results(), @r"
    run                    pipeline   profile   state      time     nodes
    ────────────────────────────────────────────────────────────────────────────
    [run]   words                finished   [time]   4 variants
    ");
    insta::assert_snapshot!(project.flow(&["runs", "--metric", "f1", "--sort", "f1"]).success().results(), @r"
    run                      pipeline   profile   state      time     nodes      f1
    ─────────────────────────────────────────────────────────────────────────────────
    [run]-3   words                finished   [time]   4 ran     100
    [run]-1   words                finished   [time]   4 ran     100
    [run]-4   words                finished   [time]   4 ran   66.67
    [run]-2   words                finished   [time]   4 ran      50
    ");
    // Two variants are compared as any two runs.
    let pair = project
        .flow(&["compare", &format!("{id}-1"), &format!("{id}-3"), "--json"])
        .success()
        .json();
    assert_eq!(pair["params"][0]["part"], "with.params.most");
    let refused = project.flow(&["show", &id]).code(2);
    insta::assert_snapshot!(refused.messages(), @r"
    error: [run] is a matrix of 4 runs
      help: name one, such as [run]-1; `flow compare [run]` shows them all
    ");
    project.run();
}

#[test]
fn thirty_variants_fit_in_a_hundred_columns() {
    let values: Vec<String> = (0..30).map(|value| value.to_string()).collect();
    let matrix = format!(
        "matrix: {{ answers.with.params.from: [{}] }}\n",
        values.join(", ")
    );
    let project = project(&matrix);
    project.run();
    let table = project.flow(&["compare", "latest"]).success().stdout;
    let lines: Vec<&str> = table
        .lines()
        .filter(|line| line.contains(" of 4"))
        .collect();
    assert_eq!(lines.len(), 30);
    assert!(
        lines.iter().all(|line| line.chars().count() <= 100),
        "{table}"
    );
}

#[test]
fn a_failing_variant_stops_no_other() {
    let matrix =
        "  last: { uses: command, inputs: { rows: score.rows }, with: { run: 'echo > $OUT/x' } }
matrix: { last.with.run: ['echo 1 > $OUT/x', 'echo no luck >&2; exit 3', 'echo 2 > $OUT/x'] }
";
    let project = project(matrix);
    let outcome = project
        .flow(&["run", "pipelines/p.yaml", "--jobs", "1"])
        .code(1);
    let told: Vec<&str> = outcome
        .stderr
        .lines()
        .skip_while(|line| !line.starts_with("error:"))
        .collect();
    assert!(
        told[0].contains("`last@run=echo-no-luck---2--exit-3` failed"),
        "{told:#?}"
    );
    assert!(told.iter().any(|line| line.contains("log:")), "{told:#?}");
    assert!(
        told.iter()
            .any(|line| line.starts_with("  × run=echo-no-luck")
                && line.contains("-2): `last` failed")),
        "{told:#?}"
    );
    let group = group(&project);
    let states: Vec<_> = group["variants"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["state"].clone())
        .collect();
    assert_eq!(states, ["finished", "failed", "finished"]);
    let runs = project.flow(&["runs"]).success();
    assert!(
        runs.stdout.contains("2 finished, 1 failed"),
        "{}",
        runs.stdout
    );
}

#[test]
fn a_killed_matrix_goes_on() {
    let stages = "  slow: { uses: command, inputs: { rows: score.rows }, with: { run: 'true' } }
matrix:
  slow.with.run:
    - 'echo quick > $OUT/x'
    - 'touch ${FLAGS}/started; while [ ! -e ${FLAGS}/go ]; do sleep 0.05; done; echo 2 > $OUT/x'
";
    let project = project(stages);
    std::fs::create_dir(project.path("flags")).unwrap();
    let flags = project.path("flags").display().to_string();
    let project = project.variable("FLAGS", &flags);
    let mut child = project
        .command(&["run", "pipelines/p.yaml", "--jobs", "2"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    let wait = |done: &dyn Fn() -> bool| {
        while !done() {
            assert!(Instant::now() < deadline, "waited too long");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    wait(&|| project.path("flags/started").exists());
    // The quick variant is over: its record says so while the other one is on.
    let states = || -> Vec<String> {
        let group = project
            .flow(&["compare", "latest", "--json"])
            .success()
            .json();
        group["variants"]
            .as_array()
            .unwrap()
            .iter()
            .map(|row| row["state"].as_str().unwrap().to_owned())
            .collect()
    };
    wait(&|| states() == ["finished", "running"]);
    let cached = || {
        let plan = project
            .flow(&["plan", "pipelines/p.yaml", "--json"])
            .success()
            .json();
        plan["cached"].as_u64().unwrap()
    };
    wait(&|| cached() == 5);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(states(), ["finished", "interrupted"]);
    std::fs::write(project.path("flags/go"), "").unwrap();
    let outcome = project.run();
    assert_eq!(executed(&outcome).len(), 1);
    assert!(
        executed(&outcome)[0].starts_with("slow@run=touch"),
        "{:?}",
        executed(&outcome)
    );
    assert_eq!(states(), ["finished", "finished"]);
}

#[test]
fn selections_mean_the_nodes_of_all_variants_or_of_some() {
    let project = project(TWO_AXES);
    project
        .flow(&["run", "pipelines/p.yaml", "--until", "few"])
        .success();
    let forced = |name: &str| {
        executed(
            &project
                .flow(&["run", "pipelines/p.yaml", "--until", "few", "--force", name])
                .success(),
        )
    };
    assert_eq!(forced("few"), ["few@most=2", "few@most=3"]);
    assert_eq!(forced("few@most=3"), ["few@most=3"]);
    let plan = project
        .flow(&[
            "run",
            "pipelines/p.yaml",
            "--dry-run",
            "--from",
            "answers@most=2,from=1",
        ])
        .success();
    insta::assert_snapshot!(plan.results(), @r"
    cached    rows
    cached    few@most=2
    will run  answers@most=2,from=1  never ran before
    will run  score@most=2,from=1    never ran before
    2 will run, 0 may run, 2 cached
    4 variants: 11 nodes, where each by itself would make 16
    ");
    insta::assert_snapshot!(project.flow(&["check", "pipelines/p.yaml"]).success().results(), @r"
    pipelines/p.yaml: no problems in 4 stages (11 nodes)
    4 variants: 11 nodes, where each by itself would make 16
    ");
    insta::assert_snapshot!(project.flow(&["graph", "pipelines/p.yaml", "--matrix", "answers.with.params.from=1", "--set", "few.with.params.most=2"]).success().results(), @r#"
    flowchart LR
      n0["rows<br/><small>source</small>"]
      n1["few<br/><small>sql</small>"]
      n2["answers<br/><small>sql</small>"]
      n3["score<br/><small>score</small>"]
      n0 -->|rows| n1
      n1 -->|rows| n2
      n2 -->|rows| n3
    "#);
}

#[test]
fn the_variants_are_tracked_as_a_group() {
    let server = TrackingServer::start();
    let project = project(TWO_AXES)
        .variable("WANDB_BASE_URL", &server.url())
        .variable("WANDB_API_KEY", KEY)
        .variable("WANDB_ENTITY", "team");
    let outcome = project.run();
    assert_eq!(
        outcome
            .stderr
            .lines()
            .filter(|line| line.starts_with("tracked: "))
            .count(),
        4,
        "{}",
        outcome.stderr
    );
    let group = group(&project);
    let state = server.state();
    assert_eq!(state.violations, [""; 0]);
    assert_eq!(state.runs.len(), 4);
    for row in group["variants"].as_array().unwrap() {
        let run = &state.runs[row["id"].as_str().unwrap()];
        assert_eq!(
            (run.group.as_str(), run.job_type.as_str()),
            (group["id"].as_str().unwrap(), "variant")
        );
        assert_eq!(run.display_name, row["label"].as_str().unwrap());
        assert_eq!(run.exit_code, Some(0));
        assert_eq!(
            run.config["matrix"]["value"]["few.with.params.most"],
            row["params"][0]
        );
        assert_eq!(
            run.config["params"]["value"]["answers"]["params.from"],
            row["params"][1]
        );
        // The shared nodes are in each of them, by their own names.
        assert_eq!(run.summary()["rows/rows"], 4);
        assert!(run.summary().get("score/f1").is_some(), "{}", run.summary());
    }
    drop(state);
    // Who names a group keeps it.
    let project = project
        .variable("WANDB_RUN_GROUP", "mine")
        .variable("WANDB_JOB_TYPE", "fit")
        .variable("WANDB_NAME", "second");
    project.run();
    let state = server.state();
    let mine: Vec<_> = state
        .runs
        .values()
        .filter(|run| run.group == "mine")
        .collect();
    assert_eq!(mine.len(), 4);
    assert!(
        mine.iter()
            .all(|run| run.job_type == "fit" && run.display_name.starts_with("second most="))
    );
}

/// The example of this repository.
#[test]
fn the_example_compares_six_variants() {
    let repository = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let project = Project::new();
    for path in [
        "pipelines/nearest-answer.yaml",
        "pipelines/data/sample.jsonl",
    ] {
        project.write(path, std::fs::read(repository.join(path)).unwrap());
    }
    let outcome = project
        .flow(&["run", "pipelines/nearest-answer.yaml"])
        .success();
    assert_eq!(executed(&outcome).len(), 19);
    let group = group(&project);
    assert_eq!(group["variants"].as_array().unwrap().len(), 6);
    let f1 = group["metrics"]
        .as_array()
        .unwrap()
        .iter()
        .find(|metric| metric["name"] == "score.f1")
        .unwrap();
    // More rows to choose from find better answers.
    let value = |variant: usize| f1["values"][variant].as_f64().unwrap();
    assert!(value(0) < value(2) && value(2) < value(4), "{f1}");
    assert_eq!(f1["more_is_better"], true);
}
