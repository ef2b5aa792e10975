//! `show`: the tables a run prints at its end.

use crate::support::Project;

/// A stage that shows its total, and a pipeline that shows its rows as well.
fn project(show: &str) -> Project {
    Project::with_pipeline(&format!(
        "name: sums
{show}
stages:
  rows: {{ uses: source, with: {{ path: rows.csv }} }}
  total: {{ uses: sums, inputs: {{ rows: rows }} }}
  files: {{ uses: command, with: {{ run: 'echo 1 > $OUT/x' }} }}
"
    ))
    .file("rows.csv", "id,n\na,1\nb,2\n")
    .file(
        "stages/sums/stage.yaml",
        "inputs: { rows: { columns: [n] } }
outputs: { sum: { from: sum, show: true }, mean: { from: mean } }
steps:
  sum: { op: sql, with: { query: 'select sum(n)::bigint as n from rows' }, inputs: { rows: rows } }
  mean: { op: sql, with: { query: 'select avg(n) as n from rows' }, inputs: { rows: rows } }
",
    )
}

#[test]
fn what_is_declared_is_printed() {
    let project = project("show: [total.mean, rows, total.sum]");
    let first = project.run();
    insta::assert_snapshot!(first.results(), @r"
    total.sum
    n
    ───
    3

    total.mean
      n
    ─────
    1.5

    rows
    id   n
    ────────
    a    1
    b    2
    ");
    // Also where nothing had to be done.
    assert_eq!(project.run().stdout, first.stdout);
    let part = |arguments: &[&str]| {
        let mut all = vec!["run", "pipelines/p.yaml"];
        all.extend(arguments);
        project.flow(&all).success().stdout
    };
    assert_eq!(part(&["--only", "files"]), "");
    assert_eq!(part(&["--until", "rows"]).lines().nth(1), Some("rows"));
    assert!(!part(&["--until", "rows"]).contains("total"));
    assert!(part(&["--only", "total.sum"]).contains("total.sum"));
}

#[test]
fn a_long_table_is_cut() {
    let project = Project::with_pipeline(
        "show: [many]\nstages:\n  many: { uses: sql, with: { query: 'select range as n from range(30) order by n' } }\n",
    );
    let outcome = project.run();
    assert_eq!(outcome.stdout.lines().last().map(str::trim), Some("19"));
    assert!(
        outcome
            .stderr
            .contains("20 of 30 rows; `flow data latest many --limit 30` shows all"),
        "{}",
        outcome.stderr
    );
}

#[test]
fn what_cannot_be_shown_is_refused() {
    let refused = |show| {
        project(show)
            .flow(&["run", "pipelines/p.yaml"])
            .code(2)
            .messages()
    };
    insta::assert_snapshot!(refused("show: [files, totl]"), @r"
      × `show` prints the rows of a table, `files` gives files
       ╭─[pipelines/p.yaml:2:8]
     1 │ name: sums
     2 │ show: [files, totl]
       ·        ─────
     3 │ stages:
       ╰────
      help: leave it out; `flow data latest files` lists them

      × there is no stage `totl`
       ╭─[pipelines/p.yaml:2:15]
     1 │ name: sums
     2 │ show: [files, totl]
       ·               ──┬─
       ·                 ╰── did you mean `total`?
     3 │ stages:
       ╰────
      help: the stages are `rows`, `total`, `files`

    2 problems found; nothing was run
    ");
    insta::assert_snapshot!(refused("show: rows"), @r"
     × `show` takes a list of outputs, this is the text `rows`
      ╭─[pipelines/p.yaml:2:7]
    1 │ name: sums
    2 │ show: rows
      ·       ────
    3 │ stages:
      ╰────
     help: for example `show: [evaluate.summary]`
    ");
}
