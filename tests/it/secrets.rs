//! Keys and passwords go where they are needed and nowhere else: planted ones are looked for in everything flow leaves.

use std::path::Path;

use crate::support::{KEY, Project, TrackingServer, judge};

const PLANTED: &str = "planted-5ecret";

const PIPELINE: &str = r#"
name: secrets
models: { wise: { url: "${JUDGE}", name: wise, api_key_env: JUDGE_KEY } }
stages:
  rows: { uses: source, with: { path: rows.csv } }
  judged: { uses: judge, inputs: { rows: rows }, with: { model: wise, prompt: prompt.md, choices: "[0, 1]" } }
  passed: { uses: command, with: { run: 'test -n "$TOKEN" && echo ok > $OUT/ok', pass_env: [TOKEN] } }
  fails: { uses: command, inputs: { passed: passed }, with: { run: 'exit 3', pass_env: [TOKEN] } }
"#;

/// Files under `folder` that hold `text`.
pub fn holding(folder: &Path, text: &str, found: &mut Vec<String>) {
    for item in std::fs::read_dir(folder).unwrap() {
        let path = item.unwrap().path();
        if path.is_dir() {
            holding(&path, text, found);
        } else if path.is_file() {
            let bytes = std::fs::read(&path).unwrap();
            if bytes
                .windows(text.len())
                .any(|window| window == text.as_bytes())
            {
                found.push(path.display().to_string());
            }
        }
    }
}

#[test]
fn a_planted_secret_is_nowhere() {
    let server = TrackingServer::start();
    let project = Project::with_pipeline(PIPELINE)
        .file("rows.csv", "id,question\n1,a\n2,b\n")
        .file(
            "prompt.md",
            "{% block user %}{{ question }}{% endblock %}\n",
        )
        .variable("JUDGE", &judge(|_| 1))
        .variable("JUDGE_KEY", &format!("{PLANTED}-judge"))
        .variable("TOKEN", &format!("{PLANTED}-token"))
        .variable("WANDB_BASE_URL", &server.url())
        .variable("WANDB_API_KEY", KEY);
    let mut said = String::new();
    for arguments in [
        &["run", "pipelines/p.yaml"][..],
        &["run", "pipelines/p.yaml"],
        &["plan", "pipelines/p.yaml", "--json"],
        &["show", "latest", "--json"],
        &["show", "latest"],
        &["report", "latest"],
    ] {
        let outcome = project.flow(arguments);
        said += &outcome.stdout;
        said += &outcome.stderr;
    }
    assert!(!said.contains(PLANTED) && !said.contains(KEY), "{said}");
    let mut found = Vec::new();
    holding(&project.path(""), PLANTED, &mut found);
    holding(&project.path(""), KEY, &mut found);
    assert_eq!(found, Vec::<String>::new());
    let state = server.state();
    assert!(!state.runs.is_empty(), "{:?}", state.requests);
    let sent = format!("{:?}", state.runs);
    assert!(!sent.contains(PLANTED) && !sent.contains(KEY), "{sent}");
}

#[test]
fn an_address_with_a_password_is_refused() {
    let project = Project::with_pipeline(
        r#"
models: { wise: { url: "http://me:word@host/v1" } }
stages:
  rows: { uses: source, with: { path: rows.csv, url: "https://me@host/rows.csv" } }
"#,
    );
    let outcome = project.flow(&["check", "pipelines/p.yaml"]).code(2);
    insta::assert_snapshot!(outcome.messages(), @r#"
      × the `url` of the model `wise` holds a user or a password
       ╭─[pipelines/p.yaml:2:24]
     1 │
     2 │ models: { wise: { url: "http://me:word@host/v1" } }
       ·                        ────────────────────────
     3 │ stages:
       ╰────
      help: it would end up in the records of runs: put the key into an environment variable and name that with
            `api_key_env`

      × the `url` holds a user or a password
       ╭─[pipelines/p.yaml:4:54]
     3 │ stages:
     4 │   rows: { uses: source, with: { path: rows.csv, url: "https://me@host/rows.csv" } }
       ·                                                      ──────────────────────────
       ╰────
      help: fetch the data by other means and name the copy with `path`

    2 problems found; nothing was run
    "#);
}
