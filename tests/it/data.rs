//! Data from outside as users see it: downloads, pinned content, files that cannot be read.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;

use crate::support::Project;

const ROWS: &str = "id,question,answer\n1,What?,This.\n2,Who?,Me.\n";

/// Serves `body` for every request; gives the address.
fn serve(body: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let lines = BufReader::new(&stream).lines().map_while(Result::ok);
            lines.take_while(|line| !line.is_empty()).for_each(drop);
            let length = body.len();
            let head =
                format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
            let _ = stream.write_all(format!("{head}{body}").as_bytes());
        }
    });
    address
}

fn pipeline(with: &str) -> String {
    format!("name: data\nstages:\n  rows: {{ uses: source, with: {{ {with} }} }}\n")
}

fn messages(project: &Project, code: i32) -> String {
    project
        .flow(&["run", "pipelines/p.yaml"])
        .code(code)
        .messages()
}

/// The lines with which a failed run ends.
fn failure(project: &Project) -> String {
    let messages = messages(project, 1);
    let lines = messages
        .lines()
        .skip_while(|line| !line.starts_with("error:"));
    lines
        .take_while(|line| !line.starts_with("failed in"))
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn data_is_downloaded_once_and_only_if_it_is_what_was_pinned() {
    let address = serve(ROWS);
    let digest = flow::digest::Digest::of(ROWS);
    let of = |digest| {
        pipeline(&format!(
            "path: data/rows.csv, url: \"{address}/rows.csv\", digest: {digest}"
        ))
    };
    let project = Project::with_pipeline(&of(flow::digest::Digest::of("another")));
    let outcome = project.flow(&["run", "pipelines/p.yaml"]);
    assert_ne!(outcome.code, 0);
    assert!(
        outcome
            .stderr
            .contains(&format!("has the digest {digest}, not")),
        "{}",
        outcome.stderr
    );
    project.write("pipelines/p.yaml", of(digest));
    project.run();
    assert_eq!(project.rows("rows").as_array().map(Vec::len), Some(2));
    // The file is there now: no request is made, and what was made from it is kept.
    project
        .flow(&["run", "pipelines/p.yaml", "--offline"])
        .success();
    assert!(project.ran().is_empty());

    // Nor is it needed while what was made from it is there: what it would hold is pinned.
    std::fs::remove_dir_all(project.path("home/downloads")).unwrap();
    let again = project
        .flow(&["run", "pipelines/p.yaml", "--offline"])
        .success();
    assert!(!again.stderr.contains(&address), "{}", again.stderr);
    assert!(project.ran().is_empty());
    project.run();
    assert!(!project.path("home/downloads").exists());
    let forced = ["run", "pipelines/p.yaml", "--force", "rows"];
    let refused = project
        .flow(&[&forced[..], &["--offline"]].concat())
        .code(1);
    assert!(
        refused.stderr.contains("never downloaded"),
        "{}",
        refused.stderr
    );
    project.flow(&forced).success();
    assert_eq!(project.ran(), ["rows"]);
    assert!(project.path("home/downloads").exists());
}

#[test]
fn an_empty_path_means_the_url() {
    let address = serve(ROWS);
    let text = |url: &str| pipeline(&format!("path: \"${{DATA:-}}\", format: csv{url}"));
    let project = Project::with_pipeline(&text(&format!(", url: \"{address}/rows.csv\"")));
    project.run();
    assert_eq!(project.rows("rows").as_array().map(Vec::len), Some(2));
    project.write("pipelines/p.yaml", text(""));
    insta::assert_snapshot!(messages(&project, 2), @r#"
     × the path is empty
      ╭─[pipelines/p.yaml:3:39]
    2 │ stages:
    3 │   rows: { uses: source, with: { path: "${DATA:-}", format: csv } }
      ·                                       ───────────
      ╰────
     help: name a file or folder, or give a `url`; a variable in it may not be set
    "#);
}

#[test]
fn files_that_cannot_be_read_are_refused_before_the_run() {
    let project = Project::with_pipeline(&pipeline("path: rows.csv"));
    project.write("rows.csv", b"id,question,answer\n1,caf\xe9,x\n");
    insta::assert_snapshot!(messages(&project, 2), @r"
     × `rows.csv` cannot be read: line 2: Invalid unicode (byte sequence mismatch) detected. This file is not utf-8
     │ encoded.
      ╭─[pipelines/p.yaml:3:39]
    2 │ stages:
    3 │   rows: { uses: source, with: { path: rows.csv } }
      ·                                       ────────
      ╰────
     help: correct the file, or its `format`
    ");
    project.write("rows.csv", "id,question,answer\n1,What?,x\n2,Who?\n");
    insta::assert_snapshot!(messages(&project, 2), @r"
     × `rows.csv` cannot be read: line 3: Expected Number of Columns: 3 Found: 2
      ╭─[pipelines/p.yaml:3:39]
    2 │ stages:
    3 │   rows: { uses: source, with: { path: rows.csv } }
      ·                                       ────────
      ╰────
     help: correct the file, or its `format`
    ");
    project.write("rows.csv", "");
    insta::assert_snapshot!(messages(&project, 2), @r"
     × `rows.csv` is empty
      ╭─[pipelines/p.yaml:3:39]
    2 │ stages:
    3 │   rows: { uses: source, with: { path: rows.csv } }
      ·                                       ────────
      ╰────
     help: give a file with rows
    ");
    project.write("pipelines/p.yaml", pipeline("path: rows.zip"));
    project.write("rows.zip", b"PK\x03\x04 and then it breaks off");
    insta::assert_snapshot!(messages(&project, 2), @r"
    error: `rows` reads data by its param `path`: `rows.zip` is not a whole zip archive: it has no directory at its end
      help: it may be cut off, or be no zip archive at all; get it again
    ");
}

#[test]
fn rows_without_a_question_are_dropped_and_named() {
    let project = Project::with_pipeline(&pipeline("path: rows.csv"));
    project.write(
        "rows.csv",
        "id,question,answer\n1,What?,This.\n2, ,Me.\n3,,You.\n",
    );
    let outcome = project.run();
    assert!(
        outcome
            .stderr
            .contains("2 rows without `question` dropped: 2, 3"),
        "{}",
        outcome.stderr
    );
    project.write("rows.csv", "id,question,answer\n2, ,Me.\n");
    insta::assert_snapshot!(failure(&project), @r"
    error: `rows` failed: no rows are left of 1 in `rows.csv`; 1 without `question`
      help: fill them in, or change `require` or `limit`
    ");
}

#[test]
fn broken_xml_is_named_with_file_and_line() {
    let project = Project::with_pipeline(&pipeline("path: medquad, format: medquad"));
    project.write(
        "medquad/1_A_QA/1.xml",
        "<Document><QAPairs>\n<QAPair><Question qid=\"1-1\">What?</Answer>\n",
    );
    insta::assert_snapshot!(failure(&project), @r"
    error: `rows` failed: `1_A_QA/1.xml` in `medquad`, line 2: ill-formed document: expected `</Question>`, but `</Answer>` was found
      help: correct the file, or take it out
    ");
}

/// The same three rows in each format, under the names of somebody else's columns.
#[test]
fn columns_of_every_format_are_mapped() {
    let with = |path: &str| {
        pipeline(&format!(
            "path: {path}, id: key, columns: {{ question: prompt, answer: reply }}"
        ))
    };
    let project = Project::with_pipeline(&with("rows.csv"));
    project.write(
        "rows.csv",
        "key,prompt,reply\nx,What?,This.\ny,Who?,\"Me, you\"\n",
    );
    project.write(
        "rows.jsonl",
        "{\"key\":\"x\",\"prompt\":\"What?\",\"reply\":\"This.\"}\n{\"key\":\"y\",\"prompt\":\"Who?\",\"reply\":\"Me, you\"}\n",
    );
    project.write(
        "dataset/data/train-00000-of-00001.jsonl",
        std::fs::read(project.path("rows.jsonl")).unwrap(),
    );
    project.write("dataset/data/test-00000-of-00001.jsonl", "{\"other\":1}\n");
    let rows = |project: &Project| {
        let query = "from data order by id";
        let found = project.flow(&["data", "latest", "rows", "--sql", query, "--json"]);
        found.success().json()
    };
    project.run();
    let expected = rows(&project);
    assert_eq!(
        expected[1],
        serde_json::json!({ "id": "y", "key": "y", "question": "Who?", "answer": "Me, you" })
    );
    let back = "select key, question as prompt, answer as reply from data";
    project
        .flow(&[
            "data",
            "latest",
            "rows",
            "--sql",
            back,
            "--export",
            "rows.parquet",
        ])
        .success();
    for path in ["rows.jsonl", "rows.parquet", "dataset, format: hf"] {
        project.write("pipelines/p.yaml", with(path));
        project.run();
        assert_eq!(rows(&project), expected, "{path}");
    }
    project.write(
        "pipelines/p.yaml",
        with("rows.csv").replace("prompt", "promt"),
    );
    insta::assert_snapshot!(messages(&project, 2), @r"
     × the data has no column `promt`
      ╭─[pipelines/p.yaml:3:79]
    2 │ stages:
    3 │   rows: { uses: source, with: { path: rows.csv, id: key, columns: { question: promt, answer: reply } } }
      ·                                                                               ─────
      ╰────
     help: did you mean `prompt`? the columns are `key`, `prompt`, `reply`
    ");
}

#[test]
fn archives_that_are_cut_off_or_expand_too_far_are_refused() {
    let project = Project::with_pipeline(&pipeline("path: qa.zip, format: medquad"));
    let zip = |content: &[u8]| {
        let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
        writer
            .start_file("a/1.xml", zip::write::SimpleFileOptions::default())
            .unwrap();
        writer.write_all(content).unwrap();
        writer.finish().unwrap().into_inner()
    };
    let whole = zip(b"<Document/>");
    project.write("qa.zip", &whole[..whole.len() / 2]);
    insta::assert_snapshot!(messages(&project, 2), @r"
    error: `rows` reads data by its param `path`: `qa.zip` is not a whole zip archive: it has no directory at its end
      help: it may be cut off, or be no zip archive at all; get it again
    ");
    project.write("qa.zip", zip(&vec![0; 8 << 20]));
    insta::assert_snapshot!(messages(&project, 2), @r"
    error: `rows` reads data by its param `path`: `a/1.xml` in `qa.zip` unpacks to 1028 times its size, 8 MiB
      help: the archive is not what it seems; check where it comes from, or unpack it by hand and name the folder
    ");
}

#[test]
fn what_is_not_text_or_has_no_rows_is_said_so() {
    let project = Project::with_pipeline(&pipeline("path: rows.jsonl"));
    project.write(
        "rows.jsonl",
        b"{\"question\":\"caf\xe9\",\"answer\":\"x\"}\n",
    );
    insta::assert_snapshot!(messages(&project, 2), @r#"
     × `rows.jsonl` cannot be read: Malformed JSON in file "rows.jsonl", at byte 17 in record/value 2: invalid UTF-8
     │ encoding in string.
      ╭─[pipelines/p.yaml:3:39]
    2 │ stages:
    3 │   rows: { uses: source, with: { path: rows.jsonl } }
      ·                                       ──────────
      ╰────
     help: correct the file, or its `format`
    "#);
    project.write("pipelines/p.yaml", pipeline("path: rows.csv"));
    project.write("rows.csv", "id,question,answer\n");
    insta::assert_snapshot!(failure(&project), @r"
    error: `rows` failed: `rows.csv` has no rows
      help: give data with rows
    ");
    project.write("rows.csv", "id,question,answer\n1,,x\n2,Who?,\n");
    insta::assert_snapshot!(failure(&project), @r"
    error: `rows` failed: no rows are left of 2 in `rows.csv`; 1 without `question`; 1 without `answer`
      help: fill them in, or change `require` or `limit`
    ");
}
