//! The real archive, where it is at hand: `MEDQUAD`, or the folder `shared` beside the repository.

use std::path::{Path, PathBuf};

use crate::support::Project;

fn archive() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/medquad/MedQuAD.zip");
    let named = std::env::var_os("MEDQUAD").map(PathBuf::from);
    named
        .into_iter()
        .chain([beside])
        .find(|path| path.is_file())
}

/// Numbers counted by an independent reader of the XML.
#[test]
#[expect(clippy::print_stderr, reason = "a test that did nothing says so")]
fn the_archive_is_read_whole() {
    let Some(archive) = archive() else {
        eprintln!("skipped: MedQuAD's archive is not here");
        return;
    };
    let pipeline = "\
name: medquad
stages:
  questions: { uses: source, with: { path: '${MEDQUAD}', format: medquad } }
  types: { uses: sql, inputs: { questions: questions.rows }, with: { query: 'select question_type, count(*) as rows from questions group by all order by 2 desc, 1' } }
  groups: { uses: sql, inputs: { questions: questions.rows }, with: { query: 'select question from questions group by question having count(distinct answer) > 1' } }
";
    let project =
        Project::with_pipeline(pipeline).variable("MEDQUAD", &archive.display().to_string());
    let run = project.run();
    assert!(
        run.stderr.contains("31034 rows without `answer` dropped"),
        "{}",
        run.stderr
    );
    let metrics = project.latest()["nodes"][0]["metrics"].clone();
    for (name, count) in [
        ("rows", 16_407.0),
        ("questions", 14_979.0),
        ("conflicting_questions", 875.0),
        ("exact_duplicates", 48.0),
        ("question_types", 16.0),
    ] {
        assert_eq!(metrics[name], count, "{name}");
    }
    assert_eq!(project.rows("groups").as_array().unwrap().len(), 875);
    let types = project.rows("types");
    let types = types.as_array().unwrap();
    assert_eq!(types.len(), 16);
    assert_eq!(types[0]["question_type"], "information");
    assert_eq!(types[0]["rows"], 4535);
    assert_eq!(types[15]["question_type"], "support groups");
    assert_eq!(types[15]["rows"], 1);
}

/// The profile for machines that cannot have the archive, up to where a model is needed.
#[test]
fn made_up_rows_take_its_place() {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &str| std::fs::read(repository.join(path)).unwrap();
    let project = Project::new();
    for path in ["pipelines/medquad.yaml", "pipelines/data/sample.jsonl"] {
        project.write(path, read(path));
    }
    // Their content is not looked at: no node that reads them runs.
    for path in [
        "home/models/smollm2-135m-instruct.gguf",
        "home/models/all-minilm-l6-v2/config.json",
    ] {
        project.write(path, "");
    }
    let until = ["--profile", "sample", "--until", "dedup.groups"];
    let run = [&["run", "pipelines/medquad.yaml"][..], &until].concat();
    project.flow(&run).success();
    assert_eq!(project.ran(), ["dedup.groups", "questions"]);
    assert!(project.rows("dedup.groups").as_array().unwrap().len() > 1);
}
