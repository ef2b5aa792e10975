//! Each command on a small project.

use serde_json::json;

use crate::support::Project;

const PICK: &str = "\
description: Picks rows.
params:
  least: { type: integer, default: 2, doc: The smallest number kept. }
  query: { type: file, default: pick.sql }
inputs:
  rows: { columns: [id, n] }
outputs:
  picked: { from: pick }
steps:
  pick: { op: sql, with: { file: $query, params: { least: $least } }, inputs: { rows: rows } }
";

const PIPELINE: &str = "\
name: numbers
stages:
  rows: { uses: source, with: { path: rows.csv } }
  few: { uses: pick, inputs: { rows: rows } }
  out: { uses: command, with: { run: 'echo done > $OUT/state' }, inputs: { few: few } }
profiles:
  strict: { few.with.least: 3 }
";

fn project() -> Project {
    Project::with_pipeline(PIPELINE)
        .file("rows.csv", "id,n\na,1\nb,2\nc,3\n")
        .file("stages/pick/stage.yaml", PICK)
        .file(
            "stages/pick/pick.sql",
            "select id, n from rows where n >= $least",
        )
}

#[test]
fn a_run_tells_what_it_did() {
    let project = project();
    insta::assert_snapshot!(project.run().messages().lines().last().unwrap(), @"finished in [time]: 3 ran (run [run])");
    assert_eq!(project.ran(), ["few.pick", "out", "rows"]);
    insta::assert_snapshot!(project.run().messages(), @"finished in [time]: 3 cached (run [run])");
    assert_eq!(project.ran(), [""; 0]);
}

#[test]
fn plan_names_what_changed() {
    let project = project();
    insta::assert_snapshot!(project.flow(&["plan", "pipelines/p.yaml", "--exit-code"]).code(3).results(), @r"
    will run  rows      never ran before
    will run  few.pick  never ran before
    will run  out       never ran before
    3 will run, 0 may run, 0 cached
    ");
    project.run();
    project
        .flow(&["plan", "pipelines/p.yaml", "--exit-code"])
        .success();
    let outcome = project
        .flow(&["plan", "pipelines/p.yaml", "--profile", "strict"])
        .success();
    insta::assert_snapshot!(outcome.results(), @r"
    cached    rows
    will run  few.pick  with.params.least: 2 → 3
    may run   out       if `few.pick` gives something else than before
    1 will run, 1 may run, 1 cached
    ");
    let outcome = project
        .flow(&[
            "run",
            "pipelines/p.yaml",
            "--profile",
            "strict",
            "--dry-run",
        ])
        .success();
    assert!(
        outcome
            .results()
            .ends_with("1 will run, 1 may run, 1 cached")
    );
    let plan = project
        .flow(&["plan", "pipelines/p.yaml", "--profile", "strict", "--json"])
        .success()
        .json();
    assert_eq!(
        plan["nodes"][1]["reasons"][0],
        json!({ "reason": "changed", "part": "with.params.least", "old": "2", "new": "3" })
    );
    assert_eq!(
        (&plan["will_run"], &plan["may_run"], &plan["cached"]),
        (&json!(1), &json!(1), &json!(1))
    );
}

#[test]
fn parts_can_be_run() {
    let project = project();
    project
        .flow(&["run", "pipelines/p.yaml", "--only", "out"])
        .code(2);
    project
        .flow(&["run", "pipelines/p.yaml", "--until", "few"])
        .success();
    assert_eq!(project.ran(), ["few.pick", "rows"]);
    project
        .flow(&["run", "pipelines/p.yaml", "--from", "few"])
        .success();
    assert_eq!(project.ran(), ["out"]);
    project
        .flow(&["run", "pipelines/p.yaml", "--force", "few"])
        .success();
    assert_eq!(project.ran(), ["few.pick"]);
    project
        .flow(&["run", "pipelines/p.yaml", "--force", "all"])
        .success();
    assert_eq!(project.ran(), ["few.pick", "out", "rows"]);
}

#[test]
fn runs_are_listed_shown_and_explained() {
    let project = project();
    assert!(
        project
            .flow(&["runs"])
            .success()
            .stderr
            .contains("there are no runs")
    );
    project.run();
    project
        .flow(&["run", "pipelines/p.yaml", "--set", "few.with.least=1"])
        .success();
    let runs = project.flow(&["runs", "--json"]).success().json();
    assert_eq!(runs.as_array().unwrap().len(), 2);
    assert_eq!(runs[0]["counts"], json!({ "ran": 2, "cached": 1 }));
    let shown = project
        .flow(&["show", "latest~1", "--json"])
        .success()
        .json();
    assert_eq!(
        (&shown["pipeline"], &shown["state"]),
        (&json!("numbers"), &json!("finished"))
    );
    assert_eq!(shown["nodes"].as_array().unwrap().len(), 3);
    assert_eq!(shown["nodes"][1]["outputs"][0]["rows"], 2);
    insta::assert_snapshot!(project.flow(&["why", "latest", "few.pick"]).success().results().lines().take(2).collect::<Vec<_>>().join("\n"), @r"
    `few.pick` ran in [run]:
      with.params.least: 2 → 1
    ");
    assert_eq!(
        project
            .flow(&["why", "latest", "few", "--json"])
            .success()
            .json()["node"],
        "few.pick"
    );
    assert!(
        project
            .flow(&["why", "latest", "rows"])
            .success()
            .stdout
            .contains("nothing it depends on had changed")
    );
    insta::assert_snapshot!(project.flow(&["why", "latest", "fwe.pick"]).code(2).messages(), @r"
    error: the run [run] has no node `fwe.pick`
      help: did you mean `few.pick`? its nodes are `rows`, `few.pick`, `out`
    ");
    insta::assert_snapshot!(project.flow(&["show", "1999"]).code(2).messages(), @r"
    error: there is no run `1999`
      help: `flow runs` lists them
    ");
    let id = runs[1]["id"].as_str().unwrap();
    assert_eq!(
        project.flow(&["show", id, "--json"]).success().json()["id"],
        *id
    );
}

#[test]
fn data_is_shown_queried_and_exported() {
    let project = project();
    project.run();
    assert_eq!(project.rows("few"), project.rows("few.picked"));
    assert_eq!(project.rows("few.pick.rows").as_array().unwrap().len(), 2);
    let total = project
        .flow(&[
            "data",
            "latest",
            "rows",
            "--sql",
            "select sum(n)::bigint as total from data",
            "--json",
        ])
        .success()
        .json();
    assert_eq!(total, json!([{ "total": 6 }]));
    insta::assert_snapshot!(project.flow(&["data", "latest", "rows", "--sql", "select id, n from data order by id", "--limit", "2"]).success().results(), @r"
    id   n
    ────────
    a    1
    b    2
    ");
    project
        .flow(&["data", "latest", "few", "--export", "few.jsonl"])
        .success();
    assert_eq!(
        std::fs::read_to_string(project.path("few.jsonl"))
            .unwrap()
            .lines()
            .count(),
        2
    );
    project
        .flow(&[
            "data", "latest", "few", "--export", "few.csv", "--limit", "1",
        ])
        .success();
    assert_eq!(
        std::fs::read_to_string(project.path("few.csv"))
            .unwrap()
            .lines()
            .count(),
        2
    );
    project
        .flow(&["data", "latest", "out", "--export", "copy"])
        .success();
    assert_eq!(
        std::fs::read_to_string(project.path("copy/state")).unwrap(),
        "done\n"
    );
    insta::assert_snapshot!(project.flow(&["data", "latest", "fwe"]).code(2).messages(), @r"
    error: the run [run] has no output `fwe`
      help: there are `rows.rows`, `few.pick.rows`, `out.out`, `few.picked`
    ");
    insta::assert_snapshot!(project.flow(&["data", "latest", "few", "--sql", "select nn from data"]).code(2).messages(), @r#"
    error: Binder Error: Referenced column "nn" not found in FROM clause!
    Candidate bindings: "n"

    LINE 1: select nn from data
                   ^
    "#);
    insta::assert_snapshot!(project.flow(&["data", "latest", "few", "--export", "few.txt"]).code(2).messages(), @r"
    error: the format of `few.txt` is not clear from its name
      help: end it in .csv, .parquet, .json or .jsonl
    ");
}

#[test]
fn the_cache_is_measured_swept_and_verified() {
    let project = project();
    project.run();
    project
        .flow(&["run", "pipelines/p.yaml", "--profile", "strict"])
        .success();
    let size = project.flow(&["cache", "--json"]).success().json();
    assert_eq!(size["entries"], 5);
    let dropped = project
        .flow(&["cache", "gc", "--keep-runs", "1", "--json"])
        .success()
        .json();
    assert_eq!(dropped["entries"], 2);
    project
        .flow(&["run", "pipelines/p.yaml", "--profile", "strict"])
        .success();
    assert_eq!(project.ran(), [""; 0]);
    assert!(
        project
            .flow(&["cache", "verify"])
            .success()
            .stdout
            .ends_with("0 damaged\n")
    );
    let folder = std::fs::read_dir(project.path("cache/objects"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    std::fs::write(folder.join("state"), "changed by hand").unwrap();
    assert!(
        project
            .flow(&["cache", "verify"])
            .code(1)
            .stdout
            .contains("made by `out`, which will run again")
    );
    project
        .flow(&["run", "pipelines/p.yaml", "--profile", "strict"])
        .success();
    assert_eq!(project.ran(), ["out"]);
    std::fs::remove_dir_all(project.path("runs")).unwrap();
    project.flow(&["cache", "gc"]).code(2);
}

#[test]
fn a_failure_is_the_headline() {
    let text = "\
stages:
  bad: { uses: command, with: { run: 'echo about to fail >&2; exit 3' } }
  good: { uses: command, with: { run: 'echo fine > $OUT/x' } }
  below: { uses: command, with: { run: 'ls $IN_x' }, inputs: { x: bad } }
";
    let project = Project::with_pipeline(text);
    let outcome = project.flow(&["run", "pipelines/p.yaml"]).code(1);
    assert!(
        outcome.stderr.contains("error: `bad` failed"),
        "{}",
        outcome.stderr
    );
    assert!(outcome.stderr.contains("about to fail"));
    insta::assert_snapshot!(outcome.messages().lines().last().unwrap(), @"failed in [time]: 1 failed, 1 skipped, 1 ran (run [run])");
    assert_eq!(project.with_status("failed"), ["bad"]);
    assert_eq!(project.with_status("skipped"), ["below"]);
    assert_eq!(project.ran(), ["good"]);
}

#[test]
fn folders_can_be_named() {
    let project = project().variable("FLOW_RUNS", "elsewhere/runs");
    project.run();
    assert!(project.path("elsewhere/runs").is_dir() && !project.path("runs").exists());
    let project = Project::with_pipeline(&format!("cache: {{ path: my-cache }}\n{PIPELINE}"));
    for file in ["rows.csv", "stages/pick/stage.yaml", "stages/pick/pick.sql"] {
        project.write(file, std::fs::read(self::project().path(file)).unwrap());
    }
    project.run();
    assert!(project.path("my-cache/flow.duckdb").is_file() && !project.path("cache").exists());
    assert_eq!(project.rows("few").as_array().unwrap().len(), 2);
}

#[test]
fn graphs_are_drawn_without_the_data() {
    let project = project();
    std::fs::remove_file(project.path("rows.csv")).unwrap();
    let drawing = project
        .flow(&["graph", "pipelines/p.yaml", "--format", "dot"])
        .success()
        .stdout;
    assert!(
        drawing.starts_with("digraph \"numbers\"")
            && drawing.contains("\"few.pick\" -> \"out\" [label=\"few\"]"),
        "{drawing}"
    );
    assert!(
        project
            .flow(&["graph", "pipelines/p.yaml"])
            .success()
            .stdout
            .starts_with("flowchart LR")
    );
}

#[test]
fn schemas_know_ops_and_stages() {
    let project = project();
    let schema = project.flow(&["schema"]).success().json();
    let uses = schema["definitions"]["stage"]["properties"]["uses"]["enum"]
        .as_array()
        .unwrap()
        .clone();
    assert!(
        uses.contains(&json!("pick")) && uses.contains(&json!("command")),
        "{uses:?}"
    );
    let rules = schema["definitions"]["stage"]["allOf"]
        .as_array()
        .unwrap()
        .clone();
    let pick = rules
        .iter()
        .find(|rule| rule["if"]["properties"]["uses"]["const"] == "pick")
        .unwrap();
    assert_eq!(
        pick["then"]["properties"]["with"]["properties"]["least"]["description"],
        "The smallest number kept."
    );
    let stage = project.flow(&["schema", "stage"]).success().json();
    assert!(
        stage["definitions"]["step"]["properties"]["op"]["enum"]
            .as_array()
            .unwrap()
            .contains(&json!("sql"))
    );
}

#[test]
fn completions_and_help_are_there() {
    let project = Project::new();
    for shell in ["bash", "zsh", "fish"] {
        assert!(
            project
                .flow(&["completions", shell])
                .success()
                .stdout
                .contains("flow")
        );
    }
    let help = project.flow(&["--help"]).success().stdout;
    for command in [
        "run",
        "plan",
        "check",
        "graph",
        "runs",
        "show",
        "why",
        "compare",
        "metrics",
        "report",
        "trace",
        "data",
        "cache",
        "fetch",
        "schema",
        "completions",
    ] {
        assert!(
            help.lines()
                .any(|line| line.trim_start().starts_with(command)),
            "{command} in {help}"
        );
    }
    assert!(
        project
            .flow(&["--version"])
            .success()
            .stdout
            .starts_with("flow ")
    );
}

#[test]
fn fetch_says_in_one_line_what_it_cannot_get() {
    let text = "stages:\n  rows: { uses: source, with: { path: rows.csv, url: 'http://127.0.0.1:9/rows.csv' } }\n";
    let project = Project::with_pipeline(text);
    let outcome = project
        .flow(&["fetch", "pipelines/p.yaml", "--offline"])
        .code(1);
    assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr);
    insta::assert_snapshot!(outcome.messages(), @r"
    error: `rows`: `http://127.0.0.1:9/rows.csv` was never downloaded, and the run is offline; run once without `--offline`, or put the file where `path` says
    ");
    project.write("rows.csv", "id,n\na,1\n");
    assert_eq!(
        project
            .flow(&["fetch", "pipelines/p.yaml", "--offline"])
            .success()
            .stdout,
        "rows  rows.csv\n"
    );
}
