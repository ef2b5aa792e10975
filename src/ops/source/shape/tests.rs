//! Shapes and samples over small tables.

use serde_json::{Value, json};

use super::*;
use crate::ops::checker;

const RAW: &str = "values ('q1', ' What is flu? ', 'An infection.', 'a'), ('q2', 'What is flu?', 'A virus.', 'b'),
    ('q2', 'Why?', E'Because.\\n\\n  So.', 'a'), ('q4', '', 'No question.', 'a'), (null, 'Who?', '  ', 'b'), (null, 'When?', 'Now.', 'b')";

fn params(value: Value) -> Params {
    serde_json::from_value(value).unwrap()
}

fn raw() -> Columns {
    ["id", "question", "answer", "kind"]
        .map(|name| (name.to_owned(), "VARCHAR".to_owned()))
        .to_vec()
}

fn make(params: &Params, rows: &str) -> Result<(Report, Vec<String>), OpError> {
    let database = checker::open().unwrap();
    database
        .execute_batch(&format!(
            "create table raw as select * from ({rows}) t(id, question, answer, kind)"
        ))
        .unwrap();
    let shape = Shape::new(params, &raw()).unwrap();
    let report = shape.make(&database, Path::new("data.csv"), 7)?;
    let columns: Vec<String> = shape
        .columns()
        .iter()
        .map(|(name, _)| quote(name))
        .collect();
    let mut statement = database
        .prepare(&format!(
            "select concat_ws('|', {}) from rows order by id",
            columns.join(", ")
        ))
        .unwrap();
    let rows = statement
        .query_map([], |row| row.get(0))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    Ok((report, rows))
}

#[test]
fn rows_are_named_identified_and_cleaned() {
    let (report, rows) = make(
        &params(json!({"columns": {"question_type": "kind"}, "whitespace": "collapse"})),
        RAW,
    )
    .unwrap();
    insta::assert_snapshot!(rows.join("\n"), @r"
    7321c9d78c2a1ce0|When?|Now.|b
    q1|What is flu?|An infection.|a
    q2|Why?|Because.
    So.|a
    q2#2|What is flu?|A virus.|b
    ");
    insta::assert_snapshot!(report.lines().join("\n"), @r"
    4 rows of 6 read
    1 row without `question` dropped: q4
    1 row without `answer` dropped: d88dcf7446d254d8
    1 row with the id of another; it ends in `#2` and so on
    questions 3, conflicting questions 1, exact duplicates 0, question types 2
    ");
    let metrics: Vec<String> = report
        .metrics()
        .into_iter()
        .map(|(name, count)| format!("{name} {count}"))
        .collect();
    insta::assert_snapshot!(metrics.join(", "), @"rows 4, rows_read 6, rows_left_out 0, rows_without_question 1, rows_without_answer 1, questions 3, conflicting_questions 1, exact_duplicates 0, question_types 2");
}

#[test]
fn ids_do_not_depend_on_the_order_of_rows() {
    let (_, rows) = make(&params(json!({})), RAW).unwrap();
    let (_, turned) = make(
        &params(json!({})),
        &format!("select * from ({RAW}) t(a, b, c, d) order by b desc, c"),
    )
    .unwrap();
    assert_eq!(rows, turned);
}

#[test]
fn unknown_columns_are_all_named() {
    let params = params(
        json!({"columns": {"a": "anser", "kind": "question"}, "limit_by": ["typ"], "id": "key", "require": ["kind"]}),
    );
    let problems = Shape::new(&params, &raw()).err().unwrap();
    let text: Vec<String> = problems
        .iter()
        .map(|problem| {
            format!(
                "{}: {} ({})",
                problem.at,
                problem.message,
                problem.help.clone().unwrap()
            )
        })
        .collect();
    insta::assert_snapshot!(text.join("\n"), @r"
    columns.a: the data has no column `anser` (did you mean `answer`? the columns are `id`, `question`, `answer`, `kind`)
    columns.kind: `question` cannot become `kind`: the data has a column of that name (give `kind` another name too: `columns: { other: kind }`)
    limit_by.0: the data has no column `typ` (the columns are `id`, `kind`, `answer`, `kind`)
    id: the data has no column `key` (the columns are `id`, `kind`, `answer`, `kind`)
    ");
}

#[test]
fn no_rows_is_an_error() {
    insta::assert_snapshot!(make(&params(json!({})), &format!("select * from ({RAW}) t(a, b, c, d) where false")).unwrap_err(), @"`data.csv` has no rows");
    insta::assert_snapshot!(make(&params(json!({"limit": 0})), RAW).unwrap_err(), @"no rows are left of 6 in `data.csv`; 1 without `question`; 1 without `answer`");
}

/// 1,000 rows; every tenth question is asked twice, and a fifth of the rows is of kind `b`.
const MANY: &str =
    "select 'r' || i as a, 'q' || case when i % 10 = 1 then i - 1 else i end as b, 'a' || i as c,
    case when i // 10 % 5 = 0 then 'b' else 'a' end as d from range(1000) t(i)";

#[test]
fn a_sample_keeps_shares_and_groups() {
    let wanted = params(json!({"limit": 100, "limit_by": ["kind"], "keep_together": ["question"]}));
    let (report, rows) = make(&wanted, MANY).unwrap();
    let of_b = rows.iter().filter(|row| row.ends_with("|b")).count();
    assert!(
        (95..=100).contains(&rows.len()) && (18..=20).contains(&of_b),
        "{} rows, {of_b} of b",
        rows.len()
    );
    assert_eq!(report.left_out, 1000 - rows.len() as u64);
    let questions: Vec<&str> = rows
        .iter()
        .map(|row| row.split('|').nth(1).unwrap())
        .collect();
    for question in questions.iter().filter(|question| question.ends_with('0')) {
        assert_eq!(
            questions.iter().filter(|other| other == &question).count(),
            2,
            "{question}"
        );
    }
    assert_eq!(make(&wanted, MANY).unwrap().1, rows);
}

#[test]
fn a_sample_hardly_moves_with_its_data() {
    let wanted = params(json!({"limit": 100}));
    let (_, rows) = make(&wanted, MANY).unwrap();
    assert_eq!(rows.len(), 100);
    let (_, fewer) = make(
        &wanted,
        &format!(
            "select * from ({MANY}) where a <> '{}'",
            rows[0].split('|').next().unwrap()
        ),
    )
    .unwrap();
    assert_eq!(rows.iter().filter(|row| !fewer.contains(row)).count(), 1);
    assert_eq!(
        make(&params(json!({"limit": 5000, "limit_by": ["kind"]})), MANY)
            .unwrap()
            .1
            .len(),
        1000
    );
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(48))]

    /// Every base id comes once as it is, and then with `#2`, `#3` and so on, in the order of the rows' content.
    #[test]
    fn repeated_ids_are_numbered_without_gaps(rows in proptest::collection::vec((0_u8..5, 0_u8..9), 1..20)) {
        let values: Vec<String> = rows
            .iter()
            .map(|(id, text)| format!("('r{id}', 'Q{text}', 'A', 'k')"))
            .collect();
        let (report, made) = make(&params(json!({})), &format!("values {}", values.join(", "))).unwrap();
        let mut times = std::collections::BTreeMap::new();
        let mut expected: Vec<String> = rows
            .iter()
            .map(|(id, _)| {
                let time = times.entry(*id).and_modify(|time| *time += 1).or_insert(1);
                if *time == 1 { format!("r{id}") } else { format!("r{id}#{time}") }
            })
            .collect();
        expected.sort();
        let mut ids: Vec<String> = made.iter().map(|row| row.split('|').next().unwrap().to_owned()).collect();
        ids.sort();
        proptest::prop_assert_eq!(ids, expected);
        proptest::prop_assert_eq!(report.repeated_ids as usize, rows.len() - times.len());
    }
}
