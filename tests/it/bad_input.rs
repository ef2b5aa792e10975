//! What users get wrong, through the program: one clear message each, exit code 2, nothing run.

use crate::support::Project;

/// The messages of `flow run` on a pipeline that is refused.
#[track_caller]
fn refused(project: &Project, arguments: &[&str]) -> String {
    let mut all = vec!["run", "pipelines/p.yaml"];
    all.extend(arguments);
    let outcome = project.flow(&all).code(2);
    assert_eq!(outcome.stdout, "");
    assert!(
        !project.path("runs").exists(),
        "a refused request leaves no record"
    );
    outcome.messages()
}

#[test]
fn several_problems_come_together() {
    let project = Project::with_pipeline(
        "stages:\n  a: { uses: sorce, with: {} }\n  b: { uses: command, with: { rn: ls } }\n",
    );
    insta::assert_snapshot!(refused(&project, &[]), @r"
      × there is no op or stage `sorce`
       ╭─[pipelines/p.yaml:2:14]
     1 │ stages:
     2 │   a: { uses: sorce, with: {} }
       ·              ──┬──
       ·                ╰── did you mean `source`?
     3 │   b: { uses: command, with: { rn: ls } }
       ╰────
      help: ops: `bootstrap`, `command`, `embed`, `generate`, `judge`, `score`, `source`, `sql`, `train`; stages (folders
            of `stages/` with a `stage.yaml`): `evaluate`, `judge-dedup`, `merge`, `qlora-train`, `quality-filter`,
            `stratified-split`

      × the op `command` needs the param `run` (the script, run by `sh -e` in an empty folder; each input is a path in
      │ `$IN_<name>`, and what is written into the folder `$OUT` is the output)
       ╭─[pipelines/p.yaml:3:3]
     2 │   a: { uses: sorce, with: {} }
     3 │   b: { uses: command, with: { rn: ls } }
       ·   ─
       ╰────
      help: add `run: …` under `with:`; it takes a text

      × the op `command` has no param `rn`
       ╭─[pipelines/p.yaml:3:31]
     2 │   a: { uses: sorce, with: {} }
     3 │   b: { uses: command, with: { rn: ls } }
       ·                               ─┬
       ·                                ╰── did you mean `run`?
       ╰────
      help: the op `command` has `env`, `files`, `pass_env`, `run`, `timeout`

    3 problems found; nothing was run
    ");
}

#[test]
fn a_cycle_is_named() {
    let text = "stages:\n  a: { uses: command, with: { run: ls }, inputs: { x: b } }\n  b: { uses: command, with: { run: ls }, inputs: { x: a } }\n";
    insta::assert_snapshot!(refused(&Project::with_pipeline(text), &[]), @r"
     × these wait for each other: a → b → a
      ╭─[pipelines/p.yaml:2:55]
    1 │ stages:
    2 │   a: { uses: command, with: { run: ls }, inputs: { x: b } }
      ·                                                       ┬
      ·                                                       ╰── this input closes the cycle
    3 │   b: { uses: command, with: { run: ls }, inputs: { x: a } }
      ╰────
     help: remove or change one of the inputs named here
    ");
}

#[test]
fn a_missing_column_is_named_with_those_there_are() {
    let project = Project::with_pipeline("stages:\n  rows: { uses: source, with: { path: rows.csv } }\n  picked: { uses: pick, inputs: { rows: rows } }\n")
        .file("rows.csv", "id,Question_\n1,a\n")
        .file("stages/pick/stage.yaml", "inputs: { rows: { columns: [question] } }\noutputs: { out: { from: pick } }\nsteps: { pick: { op: sql, with: { query: from rows }, inputs: { rows: rows } } }\n");
    insta::assert_snapshot!(refused(&project, &[]), @r"
     × the input `rows` of the stage `pick` needs the column `question`, which `rows` does not have
      ╭─[pipelines/p.yaml:3:41]
    2 │   rows: { uses: source, with: { path: rows.csv } }
    3 │   picked: { uses: pick, inputs: { rows: rows } }
      ·                                         ──┬─
      ·                                           ╰── did you mean `Question_`?
      ╰────
     help: `rows` has the columns `id`, `Question_`
    ");
}

#[test]
fn a_missing_file_is_named() {
    let project = Project::with_pipeline(
        "stages:\n  rows: { uses: source, with: { path: data/rows.csv } }\n",
    );
    insta::assert_snapshot!(refused(&project, &[]), @r"
     × there is no file or folder `data/rows.csv`
      ╭─[pipelines/p.yaml:2:39]
    1 │ stages:
    2 │   rows: { uses: source, with: { path: data/rows.csv } }
      ·                                       ─────────────
      ╰────
     help: paths are relative to the project folder; correct it, or put the data there
    ");
}

#[test]
fn a_tab_is_shown() {
    insta::assert_snapshot!(refused(&Project::with_pipeline("stages:\n\ta: { uses: command }\n"), &[]), @r"
     × a tab indents this line, which YAML does not allow
      ╭─[pipelines/p.yaml:2:1]
    1 │ stages:
    2 │     a: { uses: command }
      · ▲
      ╰────
     help: indent with spaces
    ");
}

#[test]
fn an_unknown_profile_and_a_wrong_set_are_shown() {
    let project = Project::with_pipeline(
        "stages:\n  a: { uses: command, with: { run: ls } }\nprofiles:\n  small: {}\n",
    );
    insta::assert_snapshot!(refused(&project, &["--profile", "smal", "--set", "b.with.run=x"]), @r"
      × there is no profile `smal`
       ╭─[--profile:1:1]
     1 │ smal
       · ──┬─
       ·   ╰── did you mean `small`?
       ╰────
      help: the profiles are `small`

      × there is no stage `b` to override
       ╭─[--set:1:1]
     1 │ b.with.run=x
       · ──────────
       ╰────
      help: begin with a stage (`a`) or with `models`, `seed`, `cache`, `tracking`, `executor`

    2 problems found; nothing was run
    ");
}

#[test]
fn a_pipeline_that_is_not_there() {
    let project = Project::with_pipeline("stages: {}\n");
    let outcome = project.flow(&["run", "pipelines/q.yaml"]).code(2);
    insta::assert_snapshot!(outcome.messages(), @r"
    × there is no file `pipelines/q.yaml`
    help: pipelines nearby: `pipelines/p.yaml`
    ");
    let outcome = project.flow(&["run", "pipelines"]).code(2);
    insta::assert_snapshot!(outcome.messages(), @r"
    × `pipelines` is a folder, not a file
    help: pipelines nearby: `pipelines/p.yaml`
    ");
}

#[test]
fn a_pipeline_that_is_not_text() {
    let project = Project::new();
    project.write("pipelines/p.yaml", b"stages: \xff\n");
    insta::assert_snapshot!(refused(&project, &[]), @r"
    × `pipelines/p.yaml` is not UTF-8 text: byte 9 on line 1 is invalid
    help: convert it, for example with `iconv -t utf-8 pipelines/p.yaml`
    ");
}

#[test]
fn an_unknown_node_is_refused() {
    let project = Project::with_pipeline(
        "stages:\n  first: { uses: command, with: { run: touch $OUT/x } }\n",
    );
    insta::assert_snapshot!(project.flow(&["run", "pipelines/p.yaml", "--only", "fist"]).code(2).messages(), @r"
    error: there is no stage or node `fist` in the pipeline; did you mean `first`?
      help: `flow graph` lists stages and nodes
    ");
}

#[test]
fn check_reports_as_run_does_and_as_json() {
    let project = Project::with_pipeline("stages:\n  a: { uses: command, with: { run: 5 } }\n");
    let outcome = project
        .flow(&["check", "pipelines/p.yaml", "--json"])
        .code(2);
    let problem = &outcome.json()["problems"][0];
    assert_eq!(problem["place"]["path"], "stages.a.with.run");
    assert_eq!(problem["place"]["line"], 2);
    assert_eq!(
        project
            .flow(&["check", "pipelines/p.yaml"])
            .code(2)
            .messages(),
        refused(&project, &[])
    );
}

#[test]
fn unknown_commands_and_options_are_refused() {
    let project = Project::new();
    assert!(project.flow(&["rum"]).code(2).stderr.contains("run"));
    project.flow(&["run"]).code(2);
    project.flow(&["run", "p.yaml", "--jobs", "0"]).code(2);
}
