//! Run records: lists of runs, and the form of `run.json`.

use serde_json::{Value, json};

use crate::support::json_schema::complaints;
use crate::support::{Project, text_of};

#[test]
fn runs_are_filtered_and_sorted() {
    let project = Project::medical_twice(&["evaluate.with.words=3"]);
    project
        .flow(&["run", "pipelines/p.yaml", "--profile", "strict"])
        .success();
    project.write(
        "pipelines/bad.yaml",
        "stages:\n  bad: { uses: command, with: { run: 'exit 3' } }\n",
    );
    project.flow(&["run", "pipelines/bad.yaml"]).code(1);
    let listed = |arguments: &[&str]| {
        let mut all = vec!["runs", "--json"];
        all.extend(arguments);
        let heads = project.flow(&all).success().json();
        heads.as_array().unwrap().clone()
    };
    assert_eq!(listed(&[]).len(), 4);
    assert_eq!(listed(&["--pipeline", "medical"]).len(), 3);
    assert_eq!(listed(&["--profile", "strict"]).len(), 1);
    assert_eq!(
        listed(&["--state", "failed", "--state", "running"]).len(),
        1
    );
    assert_eq!(
        (
            listed(&["--since", "1h"]).len(),
            listed(&["--since", "9999-01-01"]).len()
        ),
        (4, 0)
    );
    let f1: Vec<f64> = listed(&["--pipeline", "medical", "--sort", "f1_tuned"])
        .iter()
        .map(|head| {
            head["metrics"]["evaluate.summary.f1_tuned"]
                .as_f64()
                .unwrap()
        })
        .collect();
    assert!(f1.is_sorted_by(|a, b| a >= b) && f1[0] > f1[2], "{f1:?}");
    let oldest = listed(&["--reverse"]);
    assert!(oldest[0]["id"].as_str() < oldest[3]["id"].as_str());
    let shown = project
        .flow(&["runs", "--metric", "f1_tuned"])
        .success()
        .results();
    assert!(
        shown.lines().next().unwrap().ends_with("f1_tuned"),
        "{shown}"
    );
    insta::assert_snapshot!(project.flow(&["runs", "--metric", "f2_tuned"]).code(2).messages().lines().next().unwrap(), @"error: no run has a final number `f2_tuned`");
    insta::assert_snapshot!(project.flow(&["runs", "--state", "failed", "--profile", "strict"]).success().messages(), @"none of 4 runs is of this kind");
    project.flow(&["runs", "--since", "soon"]).code(2);
}

/// Of a run that finished, one that failed, and one that was killed.
#[test]
fn records_are_as_their_schema_says() {
    let project = Project::with_pipeline(
        "models:\n  judge: { url: 'http://127.0.0.1:1/v1', name: none }\nstages:\n  one: { uses: command, with: { run: 'exit ${CODE}' } }\n",
    );
    let schema = project.flow(&["schema", "run"]).success().json();
    let mut heads = Vec::new();
    for (code, state) in [(0, "finished"), (3, "failed")] {
        let mut command = project.command(&["run", "pipelines/p.yaml"]);
        command.env("CODE", code.to_string());
        command.output().unwrap();
        let id = text_of(&project.latest()["id"]);
        let text = std::fs::read(project.path(&format!("runs/{id}/run.json"))).unwrap();
        let head: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(head["state"], state);
        heads.push(head);
    }
    let complaints = |head: &Value| complaints(&schema, &schema, head, "run.json");
    for head in &heads {
        assert_eq!(complaints(head), [""; 0]);
        // All that is there is described.
        for (name, _) in head.as_object().unwrap() {
            let text = &schema["properties"][name]["description"];
            let kind = &schema["properties"][name]["$ref"];
            assert!(text.is_string() || kind.is_string(), "{name}");
        }
    }
    let mut wrong = heads[0].clone();
    wrong["state"] = json!("gone");
    wrong.as_object_mut().unwrap().remove("started");
    assert_eq!(complaints(&wrong).len(), 2, "{:?}", complaints(&wrong));
}
