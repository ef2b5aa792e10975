//! Tracking as users meet it: variables, `flow run`, `flow sync`, `flow export`.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{Fault, KEY, Project, TrackingServer};

const PIPELINE: &str = "\
name: numbers
seed: 5
stages:
  rows: { uses: source, with: { path: rows.csv } }
  answers: { uses: sql, inputs: { rows: rows.rows }, with: { query: \"select id, word as reference, case when n > 1 then word else 'other' end as prediction from rows\" } }
  score: { uses: score, inputs: { rows: answers } }
  pairs: { uses: sql, inputs: { rows: score.rows }, with: { query: \"select id, 0.0::double as base, f1 as tuned from rows\" } }
  gain: { uses: bootstrap, inputs: { rows: pairs }, with: { metrics: { f1: [base, tuned] }, resamples: 100 } }
  adapter: { uses: command, inputs: { gain: gain }, with: { run: 'echo \"{}\" > $OUT/adapter_config.json' } }
";

fn project(server: &TrackingServer) -> Project {
    Project::with_pipeline(PIPELINE)
        .file("rows.csv", "id,word,n\na,one,1\nb,two,2\nc,three,3\n")
        .variable("WANDB_BASE_URL", &server.url())
        .variable("WANDB_API_KEY", KEY)
        .variable("WANDB_ENTITY", "team")
}

#[test]
fn final_numbers_counts_and_files_arrive() {
    let server = TrackingServer::start();
    let project = project(&server);
    let outcome = project.run();
    let page = outcome
        .stderr
        .lines()
        .find(|line| line.starts_with("tracked: "));
    let id = project.latest()["id"].as_str().unwrap().to_owned();
    assert_eq!(
        page,
        Some(format!("tracked: {}/team/numbers/runs/{id}", server.url()).as_str())
    );

    let run = server.only_run();
    assert_eq!(run.exit_code, Some(0));
    let summary = run.summary();
    assert_eq!(summary["rows/rows"], 3);
    assert_eq!(summary["score/rows/rows"], 3);
    let metrics = &project.latest()["metrics"];
    for name in ["score/f1", "score/exact_match"] {
        assert_eq!(
            summary[name],
            metrics[name.replace('/', ".")],
            "{name} in {summary}"
        );
        assert!(summary[name].as_f64().unwrap() > 60.0);
    }
    let config = |key: &str| run.config[key]["value"].clone();
    assert_eq!(
        (config("pipeline"), config("seed")),
        (json!("numbers"), json!(5))
    );
    assert_eq!(config("params")["gain"]["resamples"], 100);
    assert_eq!(config("fingerprints").as_object().unwrap().len(), 6);
    assert_eq!(run.files["adapter/adapter_config.json"], b"{}\n");
    assert_eq!(run.files["pipeline.yaml"], PIPELINE.as_bytes());
    assert!(
        run.console.iter().any(|line| line.contains("✓ adapter")),
        "{:?}",
        run.console
    );

    // All is cached the second time: a run of its own, with the same numbers.
    project.run();
    let state = server.state();
    assert_eq!(state.violations, [""; 0]);
    assert_eq!(state.runs.len(), 2);
    for run in state.runs.values() {
        assert_eq!(run.summary()["score/f1"], summary["score/f1"]);
    }
}

#[test]
fn a_killed_run_goes_on_as_the_same() {
    let server = TrackingServer::start();
    let project = project(&server);
    std::fs::create_dir(project.path("flags")).unwrap();
    let flags = project.path("flags").display().to_string();
    let slow = "  slow: { uses: command, inputs: { gain: gain }, with: { run: 'touch ${FLAGS}/started; while [ ! -e ${FLAGS}/go ]; do sleep 0.05; done; echo > $OUT/x' } }\n";
    project.write("pipelines/p.yaml", format!("{PIPELINE}{slow}"));
    let project = project.variable("FLAGS", &flags);
    let mut child = project
        .command(&["run", "pipelines/p.yaml"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // The first rows are there; what else there is may have to wait for the next request.
    server.wait(|state| state.runs.values().any(|run| !run.history.is_empty()));
    let deadline = Instant::now() + Duration::from_secs(60);
    while !project.path("flags/started").exists() {
        assert!(Instant::now() < deadline, "waited too long");
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(server.only_run().exit_code, None);

    std::fs::write(project.path("flags/go"), "").unwrap();
    let outcome = project.run();
    assert!(
        outcome.stderr.contains("which did not finish"),
        "{}",
        outcome.stderr
    );
    let run = server.only_run();
    assert_eq!(run.exit_code, Some(0));
    let rows = run.rows();
    for name in [
        "rows/rows",
        "answers/rows",
        "score/f1",
        "pairs/rows",
        "gain/rows",
        "adapter/seconds",
        "slow/seconds",
    ] {
        let times = rows.iter().filter(|row| row.get(name).is_some()).count();
        assert_eq!(times, 1, "{name} in {rows:#?}");
    }
    assert!(
        rows.iter()
            .enumerate()
            .all(|(place, row)| row["_step"] == place)
    );
    // What was killed had nothing else to say.
    let outcome = project.flow(&["sync"]).success();
    assert_eq!(outcome.stderr, "there is nothing to send\n");
}

#[test]
fn a_failure_is_told_with_its_code() {
    let server = TrackingServer::start();
    let project = project(&server);
    project.write(
        "pipelines/p.yaml",
        "stages:\n  bad: { uses: command, with: { run: 'echo oh no >&2; exit 3' } }\n",
    );
    project.flow(&["run", "pipelines/p.yaml"]).code(1);
    let run = server.only_run();
    assert_eq!(run.exit_code, Some(1));
    assert_eq!(run.project, "p");
    let failed = run.console.iter().find(|line| line.contains("✗ bad"));
    assert!(
        failed.is_some_and(|line| line.starts_with("ERROR 20")),
        "{:?}",
        run.console
    );
}

#[test]
fn offline_runs_are_synced_and_exported() {
    let server = TrackingServer::start();
    let project = project(&server);
    let outcome = project
        .flow(&["run", "pipelines/p.yaml", "--offline"])
        .success();
    assert!(
        outcome.stderr.contains("tracked offline: 6 rows;"),
        "{}",
        outcome.stderr
    );
    assert_eq!(server.state().requests, [""; 0]);

    let exported = project
        .flow(&["export", "latest", "--wandb", "out"])
        .success();
    assert_eq!(exported.messages(), "");
    let folder = project.path(exported.stdout.trim());
    let id = project.latest()["id"].as_str().unwrap().to_owned();
    assert_eq!(exported.stdout, format!("out/offline-run-{id}\n"));
    assert!(folder.join(format!("run-{id}.wandb")).is_file());
    assert_eq!(
        std::fs::read(folder.join("files/pipeline.yaml")).unwrap(),
        PIPELINE.as_bytes()
    );
    let again = project.flow(&["export", "--wandb", "out"]).code(1);
    assert!(
        again
            .messages()
            .ends_with("help: remove it first, or name another folder"),
        "{}",
        again.stderr
    );

    let outcome = project.flow(&["sync", "latest"]).success();
    assert!(
        outcome
            .stdout
            .starts_with(&format!("{id}  6 rows  http://")),
        "{}",
        outcome.stdout
    );
    let run = server.only_run();
    assert_eq!((run.history.len(), run.exit_code), (6, Some(0)));
    assert!(project.flow(&["sync"]).success().stdout.is_empty());
    // Now the server has it, and `wandb sync` would double it.
    let outcome = project.flow(&["export", "--wandb", "again"]).success();
    assert!(
        outcome.stderr.contains("would add them there again"),
        "{}",
        outcome.stderr
    );
}

#[test]
fn a_server_that_refuses_costs_a_warning() {
    let server = TrackingServer::start();
    server.faults("UpsertBucket", vec![Fault::Status(401)]);
    let project = project(&server);
    let outcome = project.run();
    let warning = outcome.messages().replace(&server.url(), "[server]");
    insta::assert_snapshot!(warning.lines().find(|line| line.starts_with("warning")).unwrap_or_default(), @"warning: tracking: [server] answers 401 Unauthorized: {\"error\":\"no\"}; 6 of 6 rows are not sent and wait in the journal: `flow sync` tries again once that is mended");
    assert_eq!(project.latest()["state"], "finished");
    // Still locked out.
    server.faults("UpsertBucket", vec![Fault::Status(401)]);
    let failed = project.flow(&["sync"]).code(1);
    insta::assert_snapshot!(failed.messages().replace(&server.url(), "[server]"), @r#"error: run [run]: [server] answers 401 Unauthorized: {"error":"no"}"#);
    project.flow(&["sync"]).success();
    assert_eq!(server.only_run().history.len(), 6);
}

#[test]
fn nobody_asked_nothing_is_kept() {
    let server = TrackingServer::start();
    let project = project(&server).variable("WANDB_MODE", "disabled");
    assert!(!project.run().stderr.contains("track"));
    let id = project.latest()["id"].as_str().unwrap().to_owned();
    assert!(!project.path(&format!("runs/{id}/tracking")).exists());
    assert_eq!(server.state().requests, [""; 0]);
    let outcome = project.flow(&["export", "--wandb", "out"]).code(2);
    insta::assert_snapshot!(outcome.messages(), @r"
    error: run [run] was not tracked
      help: `WANDB_MODE=offline flow run …` tracks a run without sending anything
    ");
}

#[test]
fn the_pipeline_can_ask_and_netrc_has_the_key() {
    let server = TrackingServer::start();
    let tracking = format!(
        "tracking: {{ base_url: \"{}\", project: from-file, entity: team }}\n",
        server.url()
    );
    let project = Project::with_pipeline(&format!(
        "{tracking}stages:\n  a: {{ uses: command, with: {{ run: 'echo > $OUT/x' }} }}\n"
    ))
    .file(
        "netrc",
        &format!("machine 127.0.0.1 login user password {KEY}\n"),
    );
    let netrc = project.path("netrc").display().to_string();
    let outcome = project.run();
    assert!(
        outcome.messages().contains("no API key for 127.0.0.1"),
        "{}",
        outcome.stderr
    );
    assert_eq!(server.state().requests, [""; 0]);
    let project = project
        .variable("NETRC", &netrc)
        .variable("WANDB_NAME", "named");
    project.flow(&["sync"]).success();
    assert_eq!(server.only_run().project, "from-file");
    project.run();
    assert_eq!(server.state().runs.len(), 2);
    assert!(
        server
            .state()
            .runs
            .values()
            .any(|run| run.display_name == "named")
    );
}

#[test]
fn wrong_settings_are_named_before_anything_runs() {
    let server = TrackingServer::start();
    let project = project(&server).variable("WANDB_MODE", "onlin");
    let outcome = project.flow(&["run", "pipelines/p.yaml"]).code(2);
    insta::assert_snapshot!(outcome.messages(), @r"
    error: `onlin` is no mode of tracking (`WANDB_MODE`)
      help: the modes are `online`, `offline` and `disabled`
    ");
    assert!(!project.path("runs").exists());
}

#[test]
fn looking_in_needs_no_server() {
    let project = Project::new();
    assert_eq!(
        project.flow(&["sync"]).success().stderr,
        "there is nothing to send\n"
    );
    let status = Command::new(env!("CARGO_BIN_EXE_flow"))
        .args(["export", "--help"])
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&status.stdout).contains("--wandb <DIR>"));
}
