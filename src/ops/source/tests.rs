//! Files of every format, good and bad, read and shaped.

use duckdb::Connection;
use serde_json::{Value, json};

use super::*;

fn load(path: &Path, params: Value) -> Result<(Connection, shape::Report), OpError> {
    let params: Params = serde_json::from_value(params).unwrap();
    let connection = checker::open().unwrap();
    let format = params
        .format_of(path)
        .map_err(|problem| OpError::new(problem.message))?;
    let skipped = readers::read(&connection, format, path, &params, &mut |_, _| Ok(()))?;
    assert!(
        skipped.iter().all(|name| name.starts_with("6_NINDS_QA/")),
        "{skipped:?}"
    );
    let columns = readers::columns(&connection)?;
    let described = if format == Format::Medquad {
        readers::medquad_columns()
    } else {
        readers::describe(&connection, format, path, &params)?
    };
    assert_eq!(columns, described);
    let shape = shape::Shape::new(&params, &columns)
        .map_err(|problems| OpError::new(problems[0].message.clone()))?;
    assert_eq!(shape.columns()[0].0, "id");
    let report = shape.make(&connection, path, 1)?;
    Ok((connection, report))
}

fn write(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    folder
}

fn ids(connection: &Connection) -> String {
    connection
        .query_row(
            "select string_agg(id, ' ' order by id) from rows",
            [],
            |row| row.get(0),
        )
        .unwrap()
}

fn message(name: &str, content: &[u8], params: Value) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    fs::write(&path, content).unwrap();
    load(&path, params)
        .unwrap_err()
        .to_string()
        .replace(&format!("{}/", folder.path().display()), "")
}

#[test]
fn medquad_has_the_measured_facts() {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/medquad/MedQuAD.zip");
    let Some(path) = std::env::var_os("MEDQUAD")
        .map(PathBuf::from)
        .or(Some(beside))
        .filter(|path| path.exists())
    else {
        return;
    };
    let (connection, report) = load(&path, json!({})).unwrap();
    let blank: Vec<_> = report
        .blank
        .iter()
        .map(|(column, count, _)| (column.as_str(), *count))
        .collect();
    assert_eq!(
        (report.read, report.rows, blank),
        (47_441, 16_407, vec![("answer", 31_034)])
    );
    let facts = [
        ("questions", 14_979),
        ("conflicting_questions", 875),
        ("exact_duplicates", 48),
        ("question_types", 16),
    ];
    assert_eq!(report.facts, facts);
    let types = "select string_agg(question_type || ' ' || n, ', ' order by n desc) from (select question_type, count(*) as n from rows group by 1)";
    let types: String = connection.query_row(types, [], |row| row.get(0)).unwrap();
    assert!(
        types.starts_with("information 4535, symptoms 2748, ")
            && types.ends_with(", support groups 1"),
        "{types}"
    );
    assert_eq!(report.repeated_ids, 0);
    let row = "select id || ' ' || file || ' ' || focus from rows where file like '1_CancerGov_QA/0000013_2_%' and id like '%-1' order by id limit 2";
    let mut statement = connection.prepare(row).unwrap();
    let rows: Vec<String> = statement
        .query_map([], |row| row.get(0))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    insta::assert_snapshot!(rows.join("\n"), @r"
    1_CancerGov_QA/0000013_2-1 1_CancerGov_QA/0000013_2.xml Chronic Myeloproliferative Neoplasms
    1_CancerGov_QA/0000013_2_1/0000013_2-1 1_CancerGov_QA/0000013_2_1.xml Polycythemia Vera
    ");
}

#[test]
fn tables_of_every_format_read_alike() {
    let csv = "id,question,answer,n\n001,\"What, then?\",Yes,1\n002,Who?,Me,2\n";
    let jsonl = "{\"id\": \"001\", \"question\": \"What, then?\", \"answer\": \"Yes\", \"n\": 1}\n{\"id\": \"002\", \"question\": \"Who?\", \"answer\": \"Me\", \"n\": 2}\n";
    let folder = write(&[
        ("a.csv", csv),
        ("b.jsonl", jsonl),
        ("hf/data/train-0.csv", csv),
        ("hf/data/test-0.csv", csv),
        ("hf/dataset_info.json", "{}"),
    ]);
    checker::open()
        .unwrap()
        .execute_batch(&format!(
            "copy (select * from read_json({})) to {}",
            readers::text(folder.path().join("b.jsonl")),
            readers::text(folder.path().join("c.parquet"))
        ))
        .unwrap();
    for name in ["a.csv", "b.jsonl", "c.parquet", "hf"] {
        let (connection, report) = load(&folder.path().join(name), json!({})).unwrap();
        assert_eq!(
            (ids(&connection).as_str(), report.rows),
            ("001 002", 2),
            "{name}"
        );
    }
    let error = load(&folder.path().join("hf"), json!({"split": "validation"})).unwrap_err();
    insta::assert_snapshot!(error.help().unwrap(), @"its files are `data/test-0.csv`, `data/train-0.csv`");
}

#[test]
fn names_are_compared_as_duckdb_does() {
    let folder = write(&[(
        "a.csv",
        "ID,Question,Answer,Kind\n001,What?,Yes,a\n002,,No,a\n",
    )]);
    let params =
        json!({"columns": {"question_type": "kind"}, "limit_by": ["Question_Type"], "limit": 5});
    let (connection, report) = load(&folder.path().join("a.csv"), params).unwrap();
    assert_eq!((ids(&connection).as_str(), report.facts.len()), ("001", 4));
}

#[test]
fn without_an_id_the_content_identifies_a_row() {
    let folder = write(&[("a.csv", "q\nx\ny\nx\n")]);
    let (connection, report) = load(&folder.path().join("a.csv"), json!({})).unwrap();
    insta::assert_snapshot!(ids(&connection), @"557460d317ae874c 64eb18f6a8f79368 64eb18f6a8f79368#2");
    assert_eq!(report.repeated_ids, 1);
}

#[test]
fn bad_input_is_said_in_one_message() {
    insta::assert_snapshot!(message("a.csv", b"", json!({})), @"`a.csv` is empty");
    insta::assert_snapshot!(message("a.csv", b"id,question\n1,caf\xe9\n", json!({})), @"`a.csv` cannot be read: line 2: Invalid unicode (byte sequence mismatch) detected. This file is not utf-8 encoded.");
    insta::assert_snapshot!(message("a.csv", b"id,question\n1,a\n2,b,c,d\n3,d\n", json!({})), @"`a.csv` cannot be read: line 3: Expected Number of Columns: 2 Found: 3");
    insta::assert_snapshot!(message("a.jsonl", b"{\"id\": 1}\n{\"id\": \n", json!({})), @r#"`a.jsonl` cannot be read: Malformed JSON in file "a.jsonl", at byte 9 in line 3: unexpected end of data."#);
    insta::assert_snapshot!(message("a.jsonl", b"{\"question\": \"\"}\n", json!({})), @"no rows are left of 1 in `a.jsonl`; 1 without `question`");
    insta::assert_snapshot!(message("a.parquet", b"PAR1 and not much more", json!({})), @"`a.parquet` cannot be read: No magic bytes found at end of file 'a.parquet'");
    insta::assert_snapshot!(message("a.zip", b"PK", json!({})), @"`a.zip` is not a whole zip archive: it has no directory at its end");
    insta::assert_snapshot!(message("a.xml", b"<Document/>", json!({})), @"none of the 1 `.xml` files of `a.xml` has `QAPairs`");
    insta::assert_snapshot!(message("rows", b"what", json!({})), @"the format of `rows` is not clear from its name");
    insta::assert_snapshot!(message("a.csv", b"id,question\n1,a\n", json!({"columns": {"answer": "anser"}})), @"the data has no column `anser`");
}
