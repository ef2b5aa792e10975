//! The stages that come with flow, through the program and on their own SQL.

use std::collections::BTreeMap;

use duckdb::Connection;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::support::{Project, judge};

/// The final numbers of a node in the latest run.
fn numbers(project: &Project, node: &str) -> Value {
    let run = project.latest();
    let nodes = run["nodes"].as_array().unwrap();
    nodes.iter().find(|found| found["name"] == node).unwrap()["metrics"].clone()
}

#[test]
fn cleaning_says_what_it_did() {
    // None of Q2's answers will do, nor does the lone answer of Q3.
    let address =
        judge(|request| i64::from(!(request.contains("Q2") || request.contains("lonely"))));
    let project = Project::with_pipeline(&format!(
        "name: clean
models: {{ j: {{ url: \"{address}\", name: j }} }}
stages:
  rows: {{ uses: source, with: {{ path: rows.csv }} }}
  dedup: {{ uses: judge-dedup, inputs: {{ rows: rows }}, with: {{ model: j }} }}
  merged: {{ uses: merge, inputs: {{ original: rows, deduped: dedup.rows, groups: dedup.groups }} }}
  clean: {{ uses: quality-filter, inputs: {{ rows: merged }}, with: {{ model: j }} }}
"
    ));
    project.write(
        "rows.csv",
        "id,question,answer\n1,Q1,good\n2,Q1,bad\n3,Q1,bad\n4,Q2,this\n5,Q2,that\n6,Q3,lonely\n7,Q3,lonely\n",
    );
    let outcome = project.run();
    assert_eq!(
        numbers(&project, "dedup.keep"),
        json!({ "groups": 2.0, "groups_dropped": 1.0, "groups_kept": 1.0 })
    );
    assert_eq!(
        numbers(&project, "merged.merge"),
        json!({ "exact_duplicates_dropped": 1.0, "rows_chosen": 1.0, "rows_in": 7.0, "rows_judged": 5.0, "rows_out": 2.0 })
    );
    assert_eq!(
        numbers(&project, "clean.keep"),
        json!({ "rows_dropped": 1.0, "rows_in": 2.0, "rows_kept": 1.0 })
    );
    assert_eq!(project.rows("clean")[0]["answer"], "good");
    assert!(
        outcome
            .stderr
            .contains("groups 2, groups_dropped 1, groups_kept 1"),
        "{}",
        outcome.stderr
    );
    assert!(
        project
            .flow(&["show"])
            .success()
            .stdout
            .contains("merged.merge.exact_duplicates_dropped")
    );
    // What was judged stays judged.
    project
        .flow(&["run", "pipelines/p.yaml", "--force", "dedup.keep"])
        .success();
    assert_eq!(project.ran(), ["dedup.keep"]);
}

const SPLIT: &str = "name: split
seed: 1
stages:
  rows: { uses: source, with: { path: rows.csv, require: [] } }
  split: { uses: stratified-split, inputs: { rows: rows }, with: { by: kind } }
";

fn split(pipeline: &str) -> (Project, Vec<String>) {
    let project = Project::with_pipeline(pipeline);
    let mut rows = String::from("id,kind\n");
    for index in 0..40 {
        rows.push_str(&format!("{index},{}\n", ["a", "b"][index % 2]));
    }
    project.write("rows.csv", rows + "40,rare\n");
    let outcome = project.run();
    assert!(
        outcome
            .stderr
            .contains("the stratum `rare` has one row, which goes to training"),
        "{}",
        outcome.stderr
    );
    let drawn = project.rows("split.validation");
    let mut ids: Vec<String> = drawn
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["id"].to_string())
        .collect();
    ids.sort();
    (project, ids)
}

#[test]
fn a_split_follows_the_seed() {
    let (project, first) = split(SPLIT);
    assert_eq!(
        numbers(&project, "split.assign"),
        json!({ "strata": 3.0, "train_rows": 33.0, "validation_rows": 8.0 })
    );
    let (_, other) = split(&SPLIT.replace("seed: 1", "seed: 2"));
    assert_ne!(first, other);
    let given = SPLIT
        .replace("seed: 1", "seed: 2")
        .replace("by: kind", "by: kind, seed: 1");
    assert_eq!(split(&given).1, first);
}

/// Ids of rows by stratum, split by the stage's own SQL: id to (stratum, part).
fn parts(
    connection: &Connection,
    rows: &[(String, usize)],
    validation: f64,
    seed: i64,
) -> BTreeMap<String, (String, String)> {
    connection
        .execute_batch("create or replace table rows (id varchar, kind varchar)")
        .unwrap();
    let mut appender = connection.appender("rows").unwrap();
    for (id, stratum) in rows {
        appender
            .append_row(duckdb::params![id, stratum.to_string()])
            .unwrap();
    }
    drop(appender);
    let mut statement = connection
        .prepare(include_str!("../../stages/stratified-split/split.sql"))
        .unwrap();
    for index in 1..=statement.parameter_count() {
        match statement.parameter_name(index).unwrap().as_str() {
            "by" => statement.raw_bind_parameter(index, "kind"),
            "validation" => statement.raw_bind_parameter(index, validation),
            "seed" => statement.raw_bind_parameter(index, seed),
            other => panic!("a param `{other}`"),
        }
        .unwrap();
    }
    statement.raw_execute().unwrap();
    let mut found = BTreeMap::new();
    let mut rows = statement.raw_query();
    while let Some(row) = rows.next().unwrap() {
        found.insert(
            row.get(0).unwrap(),
            (row.get(1).unwrap(), row.get(2).unwrap()),
        );
    }
    found
}

#[test]
fn a_new_row_moves_at_most_one_other() {
    let connection = Connection::open_in_memory().unwrap();
    let ids = proptest::collection::hash_set("[a-z]{1,6}", 1..60);
    let case = (ids, any::<u64>(), 0.0..=1.0, any::<i64>());
    proptest!(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(100) }, |((ids, strata, validation, seed) in case)| {
        let rows: Vec<(String, usize)> = ids
            .into_iter()
            .enumerate()
            .map(|(index, id)| (id, (strata >> (index % 60)) as usize % 4))
            .collect();
        let (_, before) = rows.split_last().unwrap();
        let (before, after) = (parts(&connection, before, validation, seed), parts(&connection, &rows, validation, seed));
        prop_assert_eq!(after.len(), rows.len());
        let moved = before.iter().filter(|(id, part)| after[*id] != **part).count();
        prop_assert!(moved <= 1, "{} rows moved", moved);
        let mut sizes: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
        for (stratum, part) in after.values() {
            let size = sizes.entry(stratum).or_default();
            size.0 += 1;
            size.1 += usize::from(part == "validation");
        }
        for (size, drawn) in sizes.into_values() {
            let share = if size > 1 { (size as f64 * validation).round() as usize } else { 0 };
            prop_assert_eq!(drawn, share);
        }
    });
}
