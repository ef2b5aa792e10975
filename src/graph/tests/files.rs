//! Files that are no pipeline, settings from outside, and what programs are told.

use super::*;

#[test]
fn broken_yaml() {
    insta::assert_snapshot!(messages("stages:\n\ta: { uses: rows }\n"), @r"
     × a tab indents this line, which YAML does not allow
      ╭─[pipelines/p.yaml:2:1]
    1 │ stages:
    2 │     a: { uses: rows }
      · ▲
      ╰────
     help: indent with spaces
    ");
    insta::assert_snapshot!(messages("stages:\n  a: { uses: rows\n"), @r"
     × this is not valid YAML: while parsing a flow mapping, did not find expected ',' or '}'
      ╭─[pipelines/p.yaml:2:17]
    1 │ stages:
    2 │   a: { uses: rows
      ·                 ─
      ╰────
     help: check the indentation, quotes and brackets on this line and the one before it
    ");
    insta::assert_snapshot!(messages("stages:\n  a: { uses: rows }\n  a: { uses: merge }\nseed: 1\nseed: 2\n"), @r"
     × the key `a` is given twice
      ╭─[pipelines/p.yaml:3:3]
    2 │   a: { uses: rows }
    3 │   a: { uses: merge }
      ·   ┬
      ·   ╰── again here
    4 │ seed: 1
      ╰────
     help: remove one of them

     × the key `seed` is given twice
      ╭─[pipelines/p.yaml:5:1]
    4 │ seed: 1
    5 │ seed: 2
      · ──┬─
      ·   ╰── again here
      ╰────
     help: remove one of them
    ");
    insta::assert_snapshot!(messages(""), @r"
    × the file is empty
     ╭─[pipelines/p.yaml:1:1]
     ╰────
    help: a pipeline has at least `stages:` with one stage in it
    ");
    insta::assert_snapshot!(messages("# only a comment\n"), @r"
     × the file is empty
      ╭─[pipelines/p.yaml:1:1]
    1 │ # only a comment
      · ▲
      ╰────
     help: a pipeline has at least `stages:` with one stage in it
    ");
    insta::assert_snapshot!(messages("- a\n- b\n"), @r"
     × a pipeline is a mapping, this is a list
      ╭─[pipelines/p.yaml:1:1]
    1 │ - a
      · ───
    2 │ - b
      ╰────
     help: write `key: value` pairs
    ");
    insta::assert_snapshot!(messages("stages: {}\n"), @r"
     × the pipeline has no stages
      ╭─[pipelines/p.yaml:1:9]
    1 │ stages: {}
      ·         ──
      ╰────
     help: add one, such as `rows: { uses: source, with: { path: rows.csv } }`
    ");
}

#[test]
fn alias_bombs_end_early() {
    let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..12 {
        let items = vec![format!("*a{}", level - 1); 10].join(", ");
        text.push_str(&format!("a{level}: &a{level} [{items}]\n"));
    }
    insta::assert_snapshot!(messages(&text), @r"
     × the aliases of this file stand for more than 100000 values
      ╭─[pipelines/p.yaml:5:45]
    4 │ a3: &a3 [*a2, *a2, *a2, *a2, *a2, *a2, *a2, *a2, *a2, *a2]
    5 │ a4: &a4 [*a3, *a3, *a3, *a3, *a3, *a3, *a3, *a3, *a3, *a3]
      ·                                             ───
    6 │ a5: &a5 [*a4, *a4, *a4, *a4, *a4, *a4, *a4, *a4, *a4, *a4]
      ╰────
     help: write fewer aliases of aliases
    ");
    insta::assert_snapshot!(messages(&format!("stages: {}x{}\n", "[".repeat(100), "]".repeat(100))), @r"
     × values are nested more than 64 deep
      ╭─[pipelines/p.yaml:1:72]
    1 │ stages: [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[x]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]
      ·                                                                        ─
      ╰────
     help: flatten this part
    ");
}

#[test]
fn files_that_are_no_pipeline() {
    let project = Project::new(&[]);
    std::fs::create_dir_all(project.0.path().join("pipelines")).unwrap();
    insta::assert_snapshot!(project.messages(Request::default()), @r"
    × there is no file `pipelines/p.yaml`
    help: check the path
    ");
    std::fs::write(project.0.path().join("pipelines/q.yaml"), "").unwrap();
    insta::assert_snapshot!(project.messages(Request::default()), @r"
    × there is no file `pipelines/p.yaml`
    help: pipelines nearby: `pipelines/q.yaml`
    ");
    std::fs::write(
        project.0.path().join("pipelines/p.yaml"),
        b"stages:\n  caf\xe9: {}\n",
    )
    .unwrap();
    insta::assert_snapshot!(project.messages(Request::default()), @r"
    × `pipelines/p.yaml` is not UTF-8 text: byte 14 on line 2 is invalid
    help: convert it, for example with `iconv -t utf-8 pipelines/p.yaml`
    ");
    std::fs::remove_file(project.0.path().join("pipelines/p.yaml")).unwrap();
    std::fs::create_dir(project.0.path().join("pipelines/p.yaml")).unwrap();
    insta::assert_snapshot!(project.messages(Request::default()), @r"
    × `pipelines/p.yaml` is a folder, not a file
    help: name a file in it
    ");
}

#[test]
fn profiles_and_set_are_checked() {
    let text = format!(
        "{GOOD}  broken:\n    quesions.with.limit: 1\n    clean.uses: x\n    clean.with.threshold: high\n"
    );
    let project = Project::new(&[("pipelines/p.yaml", text.as_str())]);
    let request = |profile: &str, set: &[&str]| Request {
        profile: (!profile.is_empty()).then(|| profile.to_owned()),
        set: set.iter().map(|text| (*text).to_owned()).collect(),
        ..Request::default()
    };
    insta::assert_snapshot!(project.messages(request("broken", &[])), @r"
     × there is no stage `quesions` to override
       ╭─[pipelines/p.yaml:13:5]
    12 │   broken:
    13 │     quesions.with.limit: 1
       ·     ─────────┬─────────
       ·              ╰── did you mean `questions`?
    14 │     clean.uses: x
       ╰────
     help: begin with a stage (`questions`, `clean`, `merged`) or with `models`, `seed`, `cache`, `tracking`, `executor`

     × `uses` of the stage `clean` cannot be overridden
       ╭─[pipelines/p.yaml:14:5]
    13 │     quesions.with.limit: 1
    14 │     clean.uses: x
       ·     ──────────
    15 │     clean.with.threshold: high
       ╰────
     help: write `clean.with.<param>`, `clean.inputs.<input>` or `clean.resources.<resource>`

     × `threshold` takes a number from 0 to 1, this is the text `high`
       ╭─[pipelines/p.yaml:15:27]
    14 │     clean.uses: x
    15 │     clean.with.threshold: high
       ·                           ────
       ╰────
    ");
    let project = Project::new(&[("pipelines/p.yaml", GOOD)]);
    insta::assert_snapshot!(project.messages(request("smal", &[])), @r"
     × there is no profile `smal`
      ╭─[--profile:1:1]
    1 │ smal
      · ──┬─
      ·   ╰── did you mean `small`?
      ╰────
     help: the profiles are `small`
    ");
    insta::assert_snapshot!(project.messages(request("", &["questions.with.limit=none", "clean.with.threshold", "questions.with.limit=[1"])), @r"
     × `limit` takes a whole number of at least 1, this is the text `none`
      ╭─[--set:1:22]
    1 │ questions.with.limit=none
      ·                      ────
      ╰────

     × `--set` takes `key=value`
      ╭─[--set:1:1]
    1 │ clean.with.threshold
      · ────────────────────
      ╰────
     help: for example `--set questions.with.limit=100`

     × this is not valid YAML: while parsing a flow sequence, expected ',' or ']'
      ╭─[--set:1:1]
    1 │ questions.with.limit=[1
      · ───────────────────────
      ╰────
     help: check the indentation, quotes and brackets on this line and the one before it
    ");
}

#[test]
fn unset_variables() {
    insta::assert_snapshot!(messages("stages:\n  a: { uses: rows, with: { url: \"${NOWHERE}/x\" } }\n"), @r#"
     × the environment variable `NOWHERE` is not set
      ╭─[pipelines/p.yaml:2:33]
    1 │ stages:
    2 │   a: { uses: rows, with: { url: "${NOWHERE}/x" } }
      ·                                 ──────────────
      ╰────
     help: set it, give a default as `${NOWHERE:-…}`, or write `$${` for a literal `${`
    "#);
}

#[test]
fn places_are_told_to_programs() {
    let project = Project::new(&[(
        "pipelines/p.yaml",
        "stages:\n  a: { uses: rows, with: { limit: many } }\n",
    )]);
    let Err(diagnostics) = project.compile(Request::default()) else {
        panic!("compiled")
    };
    let place = &diagnostics.to_json()[0]["place"];
    assert_eq!(
        (&place["path"], &place["line"], &place["column"]),
        (&json!("stages.a.with.limit"), &json!(2), &json!(35))
    );
    assert!(Path::new(place["file"].as_str().unwrap()).ends_with("pipelines/p.yaml"));
}
