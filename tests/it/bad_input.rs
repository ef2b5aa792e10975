//! What users get wrong, through the program: one clear message each, exit code 2, nothing run.

use crate::support::Project;

/// The messages of `flow run` on a pipeline that is refused.
#[track_caller]
fn refused(project: &Project, arguments: &[&str]) -> String {
    let mut all = vec!["run", "pipelines/p.yaml"];
    all.extend(arguments);
    let outcome = project.flow(&all).code(2);
    assert_eq!(outcome.stdout, "");
    assert!(!project.path("runs").exists(), "a refused request leaves no record");
    outcome.messages()
}

#[test]
fn several_problems_come_together() {
    let project = Project::with_pipeline("stages:\n  a: { uses: sorce, with: {} }\n  b: { uses: command, with: { rn: ls } }\n");
    insta::assert_snapshot!(refused(&project, &[]), @"");
}

#[test]
fn a_cycle_is_named() {
    let text = "stages:\n  a: { uses: command, with: { run: ls }, inputs: { x: b } }\n  b: { uses: command, with: { run: ls }, inputs: { x: a } }\n";
    insta::assert_snapshot!(refused(&Project::with_pipeline(text), &[]), @"");
}

#[test]
fn a_missing_column_is_named_with_those_there_are() {
    let project = Project::with_pipeline("stages:\n  rows: { uses: source, with: { path: rows.csv } }\n  picked: { uses: pick, inputs: { rows: rows } }\n")
        .file("rows.csv", "id,Question_\n1,a\n")
        .file("stages/pick/stage.yaml", "inputs: { rows: { columns: [question] } }\noutputs: { out: { from: pick } }\nsteps: { pick: { op: sql, with: { query: from rows }, inputs: { rows: rows } } }\n");
    insta::assert_snapshot!(refused(&project, &[]), @"");
}

#[test]
fn a_missing_file_is_named() {
    let project = Project::with_pipeline("stages:\n  rows: { uses: source, with: { path: data/rows.csv } }\n");
    insta::assert_snapshot!(refused(&project, &[]), @"");
}

#[test]
fn a_tab_is_shown() {
    insta::assert_snapshot!(refused(&Project::with_pipeline("stages:\n\ta: { uses: command }\n"), &[]), @"");
}

#[test]
fn an_unknown_profile_and_a_wrong_set_are_shown() {
    let project = Project::with_pipeline("stages:\n  a: { uses: command, with: { run: ls } }\nprofiles:\n  small: {}\n");
    insta::assert_snapshot!(refused(&project, &["--profile", "smal", "--set", "b.with.run=x"]), @"");
}

#[test]
fn a_pipeline_that_is_not_there() {
    let project = Project::with_pipeline("stages: {}\n");
    let outcome = project.flow(&["run", "pipelines/q.yaml"]).code(2);
    insta::assert_snapshot!(outcome.messages(), @"");
    let outcome = project.flow(&["run", "pipelines"]).code(2);
    insta::assert_snapshot!(outcome.messages(), @"");
}

#[test]
fn a_pipeline_that_is_not_text() {
    let project = Project::new();
    project.write("pipelines/p.yaml", b"stages: \xff\n");
    insta::assert_snapshot!(refused(&project, &[]), @"");
}

#[test]
fn an_unknown_node_is_refused() {
    let project = Project::with_pipeline("stages:\n  first: { uses: command, with: { run: touch $OUT/x } }\n");
    insta::assert_snapshot!(project.flow(&["run", "pipelines/p.yaml", "--only", "fist"]).code(2).messages(), @"");
}

#[test]
fn check_reports_as_run_does_and_as_json() {
    let project = Project::with_pipeline("stages:\n  a: { uses: command, with: { run: 5 } }\n");
    let outcome = project.flow(&["check", "pipelines/p.yaml", "--json"]).code(2);
    let problem = &outcome.json()["problems"][0];
    assert_eq!(problem["place"]["path"], "stages.a.with.run");
    assert_eq!(problem["place"]["line"], 2);
    assert_eq!(project.flow(&["check", "pipelines/p.yaml"]).code(2).messages(), refused(&project, &[]));
}

#[test]
fn unknown_commands_and_options_are_refused() {
    let project = Project::new();
    assert!(project.flow(&["rum"]).code(2).stderr.contains("run"));
    project.flow(&["run"]).code(2);
    project.flow(&["run", "p.yaml", "--jobs", "0"]).code(2);
}
