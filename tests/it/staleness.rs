//! What runs after which change, on a hundred stages: nothing more than has to.

use crate::support::Project;

/// The first stage leaves comments out, the others copy the first line: a change ends where its line does. The comment in
/// the script makes each stage a computation of its own; nothing but `sh` is started, which would take most of the time.
const FIRST: &str =
    "  n0: { uses: command, with: { run: 'grep -v ^# $FILES > $OUT/data', files: [data.txt] } }\n";

fn copy(index: usize, above: usize) -> String {
    format!(
        "  n{index}: {{ uses: command, with: {{ run: 'read -r line < $IN_x/data; echo $line > $OUT/data # {index}' }}, inputs: {{ x: n{above} }} }}\n"
    )
}

const DATA: &str = "one\ntwo\n# a comment\n";

/// Stages where each reads the one before.
fn chain(length: usize) -> Project {
    let copies: String = (1..length).map(|index| copy(index, index - 1)).collect();
    Project::with_pipeline(&format!("stages:\n{FIRST}{copies}")).file("data.txt", DATA)
}

/// Stages that all read the first.
fn fan(width: usize) -> Project {
    let copies: String = (1..width).map(|index| copy(index, 0)).collect();
    Project::with_pipeline(&format!("stages:\n{FIRST}{copies}")).file("data.txt", DATA)
}

/// How many stages run once the data is written with this text.
fn runs_after(project: &Project, text: &str) -> usize {
    project.write("data.txt", text);
    project.run();
    project.ran().len()
}

#[test]
fn a_chain_of_a_hundred() {
    let project = chain(100);
    assert_eq!(runs_after(&project, DATA), 100);
    assert_eq!(runs_after(&project, DATA), 0, "touched only");
    let same = "one\ntwo\n# another comment\n";
    assert_eq!(runs_after(&project, same), 1, "the first gives the same");
    assert_eq!(
        runs_after(&project, "one\n2\n"),
        2,
        "the second gives the same"
    );
    assert_eq!(runs_after(&project, "1\ntwo\n"), 100, "all give another");
    assert_eq!(runs_after(&project, DATA), 0, "back again");
}

#[test]
fn a_fan_of_a_hundred() {
    let project = fan(100);
    assert_eq!(runs_after(&project, DATA), 100);
    assert_eq!(runs_after(&project, DATA), 0, "touched only");
    let same = "one\ntwo\n# another comment\n";
    assert_eq!(runs_after(&project, same), 1, "the first gives the same");
    assert_eq!(runs_after(&project, "1\ntwo\n"), 100, "all give another");
    assert_eq!(runs_after(&project, DATA), 0, "back again");
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
    let edited = text.replace(
        "read -r line < $IN_x/data; echo $line > $OUT/data # 4",
        "head -n 1 $IN_x/data > $OUT/data",
    );
    assert_ne!(text, edited);
    project.write("pipelines/p.yaml", &edited);
    project.run();
    assert_eq!(project.ran(), ["n4"]);
}

#[test]
fn a_chain_of_two_thousand_runs() {
    let project = chain(2000);
    assert_eq!(runs_after(&project, DATA), 2000);
    assert_eq!(runs_after(&project, DATA), 0);
}

#[test]
fn a_new_seed_reruns_what_draws_by_it() {
    let project = Project::with_pipeline("");
    let with = |seed: u32| {
        format!(
            "seed: {seed}\nstages:\n  all: {{ uses: source, with: {{ path: data.csv }} }}\n  some: {{ uses: source, with: {{ path: data.csv, limit: 2 }} }}\n"
        )
    };
    project.write("data.csv", "id,n\n1,a\n2,b\n3,c\n4,d\n");
    project.write("pipelines/p.yaml", with(1));
    project.run();
    project.write("pipelines/p.yaml", with(2));
    project.run();
    assert_eq!(project.ran(), ["some"]);
    assert_eq!(project.with_status("cached"), ["all"]);
}
