//! What runs after which change, on a hundred stages: nothing more than has to.

use crate::support::Project;

/// Each stage copies the first line of what it reads, so a change of another line ends there. The comment makes each stage a
/// computation of its own.
fn copy(index: usize) -> String {
    format!("head -n 1 $IN_x/data > $OUT/data # {index}")
}

fn chain(length: usize) -> Project {
    let mut text = String::from(
        "stages:\n  n0: { uses: command, with: { run: 'cat $IN_x > $OUT/data' }, inputs: { x: data } }\n",
    );
    text.push_str("  data: { uses: source, with: { path: data.txt, format: files } }\n");
    for index in 1..length {
        text.push_str(&format!(
            "  n{index}: {{ uses: command, with: {{ run: '{}' }}, inputs: {{ x: n{} }} }}\n",
            copy(index),
            index - 1
        ));
    }
    Project::with_pipeline(&text.replace("cat $IN_x >", "cat $IN_x/* >"))
        .file("data.txt", "one\ntwo\n")
}

fn fan(width: usize) -> Project {
    let mut text = String::from(
        "stages:\n  data: { uses: source, with: { path: data.txt, format: files } }\n",
    );
    text.push_str("  n0: { uses: command, with: { run: 'head -n 1 $IN_x/* > $OUT/data' }, inputs: { x: data } }\n");
    for index in 1..width {
        text.push_str(&format!(
            "  n{index}: {{ uses: command, with: {{ run: '{}' }}, inputs: {{ x: n0 }} }}\n",
            copy(index)
        ));
    }
    Project::with_pipeline(&text).file("data.txt", "one\ntwo\n")
}

/// How many nodes run when the data becomes `text`; the source itself, which has to look at it, is left out.
fn runs_after(project: &Project, text: &str) -> usize {
    project.write("data.txt", text);
    project.run();
    project.ran().iter().filter(|name| *name != "data").count()
}

#[test]
fn a_chain_of_a_hundred() {
    let project = chain(100);
    assert_eq!(runs_after(&project, "one\ntwo\n"), 100);
    // Touched only.
    assert_eq!(runs_after(&project, "one\ntwo\n"), 0);
    assert!(project.ran().is_empty());
    // The second stage gives what it gave before.
    assert_eq!(runs_after(&project, "one\n2\n"), 2);
    // Everything changes.
    assert_eq!(runs_after(&project, "1\ntwo\n"), 100);
    // And back.
    assert_eq!(runs_after(&project, "one\ntwo\n"), 0);
    assert!(project.ran().is_empty());
}

#[test]
fn a_fan_of_a_hundred() {
    let project = fan(100);
    assert_eq!(runs_after(&project, "one\ntwo\n"), 100);
    assert_eq!(runs_after(&project, "one\ntwo\n"), 0);
    assert_eq!(runs_after(&project, "one\n2\n"), 1);
    assert_eq!(runs_after(&project, "1\ntwo\n"), 100);
    assert_eq!(runs_after(&project, "one\ntwo\n"), 0);
}

#[test]
fn the_same_work_is_done_once() {
    let mut text = String::from("stages:\n");
    for index in 0..40 {
        text.push_str(&format!("  n{index}: {{ uses: command, with: {{ run: 'sleep 0.05; echo same > $OUT/data' }} }}\n"));
    }
    let project = Project::with_pipeline(&text);
    project
        .flow(&["run", "pipelines/p.yaml", "--jobs", "4"])
        .success();
    assert_eq!(project.ran().len(), 1);
    assert_eq!(project.with_status("cached").len(), 39);
}

#[test]
fn an_edit_of_one_stage_ends_where_the_result_is_the_same() {
    let project = chain(10);
    project.run();
    let text = std::fs::read_to_string(project.path("pipelines/p.yaml")).unwrap();
    let edited = text.replace(&copy(1), "sed -n 1p $IN_x/data > $OUT/data");
    assert_ne!(text, edited);
    project.write("pipelines/p.yaml", &edited);
    project.run();
    assert_eq!(project.ran(), ["n1"]);
}

#[test]
fn a_chain_of_two_thousand_runs() {
    let project = chain(2000);
    project.run();
    assert_eq!(project.ran().len(), 2001);
    project.run();
    assert!(project.ran().is_empty());
}
