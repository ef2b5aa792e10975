//! `report` and `notes` of the op `sql`.

use serde_json::json;

use crate::support::Project;

fn project(remarks: &str) -> Project {
    Project::with_pipeline(&format!(
        "stages:
  rows: {{ uses: source, with: {{ path: rows.csv }} }}
  few: {{ uses: sql, with: {{ query: 'select * from rows where n >= $least', params: {{ least: 2 }}, {remarks} }}, inputs: {{ rows: rows }} }}
"
    ))
    .file("rows.csv", "id,n\na,1\nb,2\nc,3\n")
    .file(
        "report.sql",
        "select count(*) as kept, (select count(*) from rows) - kept as dropped, avg(n) as mean, $least as least from output",
    )
    .file(
        "notes.sql",
        "select id || ' stays' from output where n >= $least order by id",
    )
}

#[test]
fn numbers_and_lines_come_from_queries() {
    let project = project("report: report.sql, notes: notes.sql");
    let outcome = project.run();
    let lines: Vec<&str> = outcome.stderr.lines().collect();
    assert!(
        lines.contains(&"· few: b stays") && lines.contains(&"· few: c stays"),
        "{}",
        outcome.stderr
    );
    let reported = json!({ "dropped": 1.0, "kept": 2.0, "least": 2.0, "mean": 2.5 });
    assert_eq!(project.latest()["nodes"][1]["metrics"], reported);
    assert_eq!(project.latest()["metrics"]["few.kept"], 2.0);
    // A cached node tells its numbers again.
    project.run();
    assert!(project.ran().is_empty());
    assert_eq!(project.latest()["nodes"][1]["metrics"], reported);
}

#[test]
fn mistakes_in_them_are_found_before_the_run() {
    let refused = |remarks: &str, file: &str, text: &str| {
        let project = project(remarks);
        project.write(file, text);
        let messages = project
            .flow(&["check", "pipelines/p.yaml"])
            .code(2)
            .messages();
        let headline = messages.lines().next().unwrap_or_default().to_owned();
        headline.trim_start_matches([' ', '×']).to_owned()
    };
    insta::assert_snapshot!(refused("report: report.sql", "report.sql", "select nn from output"), @r#"report.sql, line 1: Referenced column "nn" not found in FROM clause"#);
    insta::assert_snapshot!(refused("report: report.sql", "report.sql", "select id from output"), @"report.sql: the column `id` is VARCHAR, a report is numbers");
    insta::assert_snapshot!(refused("notes: notes.sql", "notes.sql", "select n from output"), @"notes.sql: the column `n` is BIGINT, notes are text");
    insta::assert_snapshot!(refused("notes: notes.sql", "notes.sql", "select id, id from output"), @"notes.sql: notes are one column, this gives 2");
    let project = project("report: report.sql");
    project.write("report.sql", "select n from output");
    let outcome = project.flow(&["run", "pipelines/p.yaml"]).code(1);
    assert!(
        outcome
            .stderr
            .contains("report.sql: a report is one row, this gives 2"),
        "{}",
        outcome.stderr
    );
}
