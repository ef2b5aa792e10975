//! What runs after which change, on a hundred stages: nothing more than has to.

use crate::support::Project;

/// Each stage copies the first line of what it reads, so a change of another line ends there.
const COPY: &str = "head -n 1 $IN_x/data > $OUT/data";

fn chain(length: usize) -> Project {
    let mut text = String::from("stages:\n  n0: { uses: command, with: { run: 'cat $IN_x > $OUT/data' }, inputs: { x: data } }\n");
    text.push_str("  data: { uses: source, with: { path: data.txt, format: files } }\n");
    for index in 1..length {
        text.push_str(&format!("  n{index}: {{ uses: command, with: {{ run: '{COPY}' }}, inputs: {{ x: n{} }} }}\n", index - 1));
    }
    Project::with_pipeline(&text.replace("cat $IN_x >", "cat $IN_x/* >")).file("data.txt", "one\ntwo\n")
}

fn fan(width: usize) -> Project {
    let mut text = String::from("stages:\n  data: { uses: source, with: { path: data.txt, format: files } }\n");
    text.push_str("  n0: { uses: command, with: { run: 'head -n 1 $IN_x/* > $OUT/data' }, inputs: { x: data } }\n");
    for index in 1..width {
        text.push_str(&format!("  n{index}: {{ uses: command, with: {{ run: '{COPY}' }}, inputs: {{ x: n0 }} }}\n"));
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
fn an_edit_of_one_stage_ends_where_the_result_is_the_same() {
    let project = chain(10);
    project.run();
    let text = std::fs::read_to_string(project.path("pipelines/p.yaml")).unwrap();
    let edited = text.replacen(COPY, "sed -n 1p $IN_x/data > $OUT/data", 1);
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
