//! Scores and summaries of small tables.

use super::*;

fn params(group: Option<&str>) -> Params {
    Params {
        prediction: "prediction".into(),
        reference: "reference".into(),
        group: group.map(str::to_owned),
        resamples: 200,
        confidence: 0.95,
    }
}

fn scored(rows: &str, baseline: Option<&str>, params: &Params) -> Result<Vec<Scored>, OpError> {
    let connection = checker::open().unwrap();
    connection
        .execute_batch(&format!("create view rows as {rows}"))
        .unwrap();
    if let Some(baseline) = baseline {
        connection
            .execute_batch(&format!("create view baseline as {baseline}"))
            .unwrap();
    }
    read(&connection, params, baseline.is_some())?
        .rows
        .iter()
        .map(|row| score(row))
        .collect()
}

const ROWS: &str = "select * from (values ('1', 'the cat', 'a cat', 'x'), ('2', 'a dog', 'big dog', 'y'), ('3', null, 'bird', 'x'))
    t(id, prediction, reference, kind)";

#[test]
fn rows_and_slices_have_their_scores() {
    let params = params(Some("kind"));
    let rows = scored(
        ROWS,
        Some("select id, 'dog' as prediction from rows where id <> '3'"),
        &params,
    )
    .unwrap();
    let squad = |scores: &Scores| [scores[0], scores[1]];
    let scores: Vec<_> = rows
        .iter()
        .map(|row| {
            (
                row.id.as_str(),
                squad(&row.scores),
                row.baseline.as_ref().map(squad),
            )
        })
        .collect();
    let dog = 100.0 * metrics::f1("dog", "big dog");
    assert_eq!(
        scores,
        [
            ("1", [100.0, 100.0], Some([0.0, 0.0])),
            ("2", [0.0, dog], Some([0.0, dog])),
            ("3", [0.0, 0.0], None)
        ]
    );
    let summary = summarize(&rows, &params, 1);
    let cell = |row: usize, name: &str| summary.rows[row][summary.column(name).unwrap()].clone();
    let slices: Vec<_> = (0..3)
        .map(|row| (cell(row, "slice"), cell(row, "n"), cell(row, "exact_match")))
        .collect();
    assert_eq!(slices[0], ("all".into(), 3.into(), (100.0 / 3.0).into()));
    assert_eq!(
        slices[1..],
        [
            ("x".into(), 2.into(), 50.0.into()),
            ("y".into(), 1.into(), 0.0.into())
        ]
    );
    assert_eq!(
        (cell(0, "f1_gain"), cell(2, "f1_gain")),
        (50.0.into(), 0.0.into())
    );
    assert!(cell(0, "f1_low").as_f64() < cell(0, "f1").as_f64());
}

#[test]
fn the_best_of_several_references_counts() {
    let rows = scored(
        "select '1' as id, 'red fox' as prediction, ['fox', 'the red fox'] as reference",
        None,
        &params(None),
    )
    .unwrap();
    assert_eq!(rows[0].scores[..2], [100.0, 100.0]);
}

#[test]
fn ids_are_unique() {
    let error = scored(
        "select '1' as id, 'a' as prediction, 'b' as reference from range(3)",
        None,
        &params(None),
    )
    .err()
    .unwrap();
    insta::assert_snapshot!(error, @"2 rows have the id of another");
}
