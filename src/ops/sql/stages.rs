//! The SQL of the built-in stages against the same rules written out in Rust, on random small tables.

use std::collections::{BTreeMap, BTreeSet};

use duckdb::Connection;
use proptest::prelude::*;
use serde_json::Value;

use crate::cache::bind;
use crate::config::stage_file;

/// Question and answer of a row; its id is its place. Few different texts, so that many are equal; `None` is NULL.
type Pair = (Option<u8>, Option<u8>);

fn pairs() -> impl Strategy<Value = Vec<Pair>> {
    let text = || proptest::option::weighted(0.9, 0_u8..4);
    proptest::collection::vec((text(), text()), 0..24)
}

/// Ids sort as texts: `r09` before `r10`.
fn id(place: usize) -> String {
    format!("r{place:02}")
}

fn literal(text: Option<u8>) -> String {
    text.map_or_else(|| "null".to_owned(), |number| format!("'Text {number}'"))
}

fn database(rows: &[Pair]) -> Connection {
    let database = Connection::open_in_memory().unwrap();
    database
        .execute_batch("create table rows (id varchar, question varchar, answer varchar)")
        .unwrap();
    for (place, (question, answer)) in rows.iter().enumerate() {
        let (question, answer) = (literal(*question), literal(*answer));
        database
            .execute_batch(&format!(
                "insert into rows values ('{}', {question}, {answer})",
                id(place)
            ))
            .unwrap();
    }
    database
}

/// Makes the table `name` by a file of a stage.
fn make(database: &Connection, name: &str, stage: &str, file: &str, params: &[(String, Value)]) {
    let sql = stage_file(stage, file).unwrap();
    let mut statement = database
        .prepare(&format!("create table {name} as\n{sql}\n"))
        .unwrap();
    bind(&mut statement, params).unwrap();
    statement.raw_execute().unwrap();
}

fn lines(database: &Connection, sql: &str) -> Vec<String> {
    let mut statement = database.prepare(sql).unwrap();
    statement
        .query_map([], |row| row.get(0))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap()
}

/// The ids of each question with at least two different answers: the smallest of each answer, and all of them.
fn expected_groups(rows: &[Pair]) -> Vec<(Vec<String>, Vec<String>)> {
    let mut questions: BTreeMap<u8, Vec<(Option<u8>, String)>> = BTreeMap::new();
    for (place, (question, answer)) in rows.iter().enumerate() {
        if let Some(question) = question {
            questions
                .entry(*question)
                .or_default()
                .push((*answer, id(place)));
        }
    }
    let mut groups = Vec::new();
    for members in questions.into_values() {
        let mut seen = BTreeSet::new();
        let first: Vec<String> = members
            .iter()
            .filter(|(answer, _)| seen.insert(*answer))
            .map(|(_, id)| id.clone())
            .collect();
        if first.len() > 1 {
            groups.push((first, members.into_iter().map(|(_, id)| id).collect()));
        }
    }
    groups.sort();
    groups
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn groups_are_the_questions_with_different_answers(rows in pairs()) {
        let database = database(&rows);
        let params = [("normalise".to_owned(), Value::from("exact"))];
        make(&database, "groups", "judge-dedup", "groups.sql", &params);
        let expected: Vec<String> = expected_groups(&rows)
            .into_iter()
            .map(|(first, every)| {
                let places: Vec<usize> = first.iter().map(|id| id[1..].parse().unwrap()).collect();
                let answers: Vec<String> = places
                    .iter()
                    .map(|&place| rows[place].1.map_or_else(|| "NULL".to_owned(), |number| format!("Text {number}")))
                    .collect();
                let question = rows[places[0]].0.unwrap();
                format!(
                    "{} Text {question} [{}] [{}] [{}]",
                    first[0], first.join(", "), answers.join(", "), every.join(", ")
                )
            })
            .collect();
        let found = lines(
            &database,
            "select concat_ws(' ', id, question, ids::varchar, answers::varchar, every_id::varchar) from groups order by 1",
        );
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn merge_replaces_groups_and_drops_exact_duplicates(rows in pairs()) {
        let database = database(&rows);
        let params = [("normalise".to_owned(), Value::from("exact"))];
        make(&database, "groups", "judge-dedup", "groups.sql", &params);
        database
            .execute_batch(
                "create view original as from rows;
                create table deduped as select rows.* from groups join rows on rows.id = groups.ids[2]",
            )
            .unwrap();
        make(&database, "merged", "merge", "merge.sql", &[]);
        let groups = expected_groups(&rows);
        let judged: BTreeSet<&String> = groups.iter().flat_map(|(_, every)| every).collect();
        let winners: BTreeSet<&String> = groups.iter().map(|(first, _)| &first[1]).collect();
        let mut seen = BTreeSet::new();
        let expected: Vec<String> = (0..rows.len())
            .filter(|&place| !judged.contains(&id(place)) || winners.contains(&id(place)))
            .filter(|&place| seen.insert(rows[place]))
            .map(id)
            .collect();
        prop_assert_eq!(lines(&database, "select id from merged order by id"), expected);
    }
}
