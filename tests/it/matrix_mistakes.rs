//! What is wrong with a `matrix:`, as users see it.

use crate::matrix::{PIPELINE, project};

#[test]
fn what_is_wrong_is_told_once() {
    let project = project("");
    let messages = |matrix: &str| {
        project.write("pipelines/p.yaml", format!("{PIPELINE}{matrix}"));
        project
            .flow(&["check", "pipelines/p.yaml"])
            .code(2)
            .messages()
    };
    insta::assert_snapshot!(messages("matrix: { few.with.parms.most: [1, 2], fwe.with.query: [a], answers.with.params.from: [], score.with.x: 3, seed: [1, 1.0] }\n"), @r"
      × the op `sql` has no param `parms`
       ╭─[pipelines/p.yaml:8:11]
     7 │   score: { uses: score, inputs: { rows: answers } }
     8 │ matrix: { few.with.parms.most: [1, 2], fwe.with.query: [a], answers.with.params.from: [], score.with.x: 3, seed: [1, 1.0] }
       ·           ─────────┬─────────
       ·                    ╰── did you mean `params`?
       ╰────
      help: the op `sql` has `file`, `notes`, `params`, `query`, `report`

      × there is no stage `fwe` to override
       ╭─[pipelines/p.yaml:8:40]
     7 │   score: { uses: score, inputs: { rows: answers } }
     8 │ matrix: { few.with.parms.most: [1, 2], fwe.with.query: [a], answers.with.params.from: [], score.with.x: 3, seed: [1, 1.0] }
       ·                                        ───────┬──────
       ·                                               ╰── did you mean `few`?
       ╰────
      help: begin with a stage (`rows`, `few`, `answers`, `score`) or with `models`, `seed`, `cache`, `tracking`,
            `executor`

      × `answers.with.params.from` of the matrix lists no value
       ╭─[pipelines/p.yaml:8:87]
     7 │   score: { uses: score, inputs: { rows: answers } }
     8 │ matrix: { few.with.parms.most: [1, 2], fwe.with.query: [a], answers.with.params.from: [], score.with.x: 3, seed: [1, 1.0] }
       ·                                                                                       ──
       ╰────
      help: list at least one, or remove the key

      × `score.with.x` takes a list of values in `matrix`, this is the integer `3`
       ╭─[pipelines/p.yaml:8:105]
     7 │   score: { uses: score, inputs: { rows: answers } }
     8 │ matrix: { few.with.parms.most: [1, 2], fwe.with.query: [a], answers.with.params.from: [], score.with.x: 3, seed: [1, 1.0] }
       ·                                                                                                         ─
       ╰────
      help: write `score.with.x: [a, b]`

      × `seed` lists the number `1.0` twice
       ╭─[pipelines/p.yaml:8:118]
     7 │   score: { uses: score, inputs: { rows: answers } }
     8 │ matrix: { few.with.parms.most: [1, 2], fwe.with.query: [a], answers.with.params.from: [], score.with.x: 3, seed: [1, 1.0] }
       ·                                                                                                                      ─┬─
       ·                                                                                                                       ╰── again here
       ╰────
      help: remove one of them

    5 problems found; nothing was run
    ");
    insta::assert_snapshot!(messages("matrix: { few.with.query: [1, 2, 3], cache.path: [a, b], models.m.path: [a, b], exclud: [] }\n"), @r"
      × `query` takes a text, this is the integer `1`
       ╭─[pipelines/p.yaml:8:28]
     7 │   score: { uses: score, inputs: { rows: answers } }
     8 │ matrix: { few.with.query: [1, 2, 3], cache.path: [a, b], models.m.path: [a, b], exclud: [] }
       ·                            ─
       ╰────
      help: put quotes around it to make it text

      × `query` takes a text, this is the integer `2`
       ╭─[pipelines/p.yaml:8:31]
     7 │   score: { uses: score, inputs: { rows: answers } }
     8 │ matrix: { few.with.query: [1, 2, 3], cache.path: [a, b], models.m.path: [a, b], exclud: [] }
       ·                               ─
       ╰────
      help: put quotes around it to make it text

      × `query` takes a text, this is the integer `3`
       ╭─[pipelines/p.yaml:8:34]
     7 │   score: { uses: score, inputs: { rows: answers } }
     8 │ matrix: { few.with.query: [1, 2, 3], cache.path: [a, b], models.m.path: [a, b], exclud: [] }
       ·                                  ─
       ╰────
      help: put quotes around it to make it text

      × `cache` is the same for all variants, it cannot vary
       ╭─[pipelines/p.yaml:8:38]
     7 │   score: { uses: score, inputs: { rows: answers } }
     8 │ matrix: { few.with.query: [1, 2, 3], cache.path: [a, b], models.m.path: [a, b], exclud: [] }
       ·                                      ──────────
       ╰────
      help: write it outside of `matrix`

      × there is no model `m` to vary
       ╭─[pipelines/p.yaml:8:58]
     7 │   score: { uses: score, inputs: { rows: answers } }
     8 │ matrix: { few.with.query: [1, 2, 3], cache.path: [a, b], models.m.path: [a, b], exclud: [] }
       ·                                                          ─────────────
       ╰────
      help: there are no `models:` yet

      × `exclud` is no key of `matrix`
       ╭─[pipelines/p.yaml:8:81]
     7 │   score: { uses: score, inputs: { rows: answers } }
     8 │ matrix: { few.with.query: [1, 2, 3], cache.path: [a, b], models.m.path: [a, b], exclud: [] }
       ·                                                                                 ───┬──
       ·                                                                                    ╰── did you mean `exclude`?
       ╰────
      help: write `<stage>.with.<param>: [value, value]`, `include`, `exclude` or `limit`

    6 problems found; nothing was run
    ");
    insta::assert_snapshot!(messages("matrix: { seed: [1, 2], few.with.params.most: [1, 2], include: [{ seed: 3 }, { seed: 1, few.with.params.most: 2 }], exclude: [{ seed: 9 }, { sed: 1 }] }\n"), @r"
      × this variant has no value for `few.with.params.most`
       ╭─[pipelines/p.yaml:8:65]
     7 │   score: { uses: score, inputs: { rows: answers } }
     8 │ matrix: { seed: [1, 2], few.with.params.most: [1, 2], include: [{ seed: 3 }, { seed: 1, few.with.params.most: 2 }], exclude: [{ seed: 9 }, { sed: 1 }] }
       ·                                                                 ───────────
       ╰────
      help: add `few.with.params.most: …`; an `include` is a whole variant

      × this variant is there already
       ╭─[pipelines/p.yaml:8:78]
     7 │   score: { uses: score, inputs: { rows: answers } }
     8 │ matrix: { seed: [1, 2], few.with.params.most: [1, 2], include: [{ seed: 3 }, { seed: 1, few.with.params.most: 2 }], exclude: [{ seed: 9 }, { sed: 1 }] }
       ·                                                                              ────────────────────────────────────
       ╰────
      help: remove it

      × this excludes no variant
       ╭─[pipelines/p.yaml:8:127]
     7 │   score: { uses: score, inputs: { rows: answers } }
     8 │ matrix: { seed: [1, 2], few.with.params.most: [1, 2], include: [{ seed: 3 }, { seed: 1, few.with.params.most: 2 }], exclude: [{ seed: 9 }, { sed: 1 }] }
       ·                                                                                                                               ───────────
       ╰────
      help: name values that are listed, each under its own key

      × `sed` of `exclude` is no key of the matrix
       ╭─[pipelines/p.yaml:8:142]
     7 │   score: { uses: score, inputs: { rows: answers } }
     8 │ matrix: { seed: [1, 2], few.with.params.most: [1, 2], include: [{ seed: 3 }, { seed: 1, few.with.params.most: 2 }], exclude: [{ seed: 9 }, { sed: 1 }] }
       ·                                                                                                                                              ─┬─
       ·                                                                                                                                               ╰── did you mean `seed`?
       ╰────
      help: the keys are `seed`, `few.with.params.most`

    4 problems found; nothing was run
    ");
    let many: Vec<String> = (0..17).map(|value| value.to_string()).collect();
    let many = many.join(", ");
    insta::assert_snapshot!(messages(&format!("matrix: {{ seed: [{many}], few.with.params.most: [{many}] }}\n")), @r"
     × the matrix has 289 variants, more than 256
      ╭─[pipelines/p.yaml:8:17]
    7 │   score: { uses: score, inputs: { rows: answers } }
    8 │ matrix: { seed: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16], few.with.params.most: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16] }
      ·                 ──────────────────────────────────────────────────────────
      ╰────
     help: list fewer values, or raise `limit:` of the matrix if you mean it
    ");
    project.write(
        "pipelines/p.yaml",
        format!(
            "{PIPELINE}matrix: {{ limit: 289, seed: [{many}], few.with.params.most: [{many}] }}\n"
        ),
    );
    project.flow(&["check", "pipelines/p.yaml"]).success();
    let arguments = |given: &[&str]| {
        project
            .flow(&[&["check", "pipelines/p.yaml"], given].concat())
            .code(2)
            .messages()
    };
    project.write(
        "pipelines/p.yaml",
        format!("{PIPELINE}matrix: {{ few.with.params: [{{ most: 1 }}, {{ most: 2 }}] }}\n"),
    );
    insta::assert_snapshot!(arguments(&["--matrix", "seed", "--set", "few.with.params.most=1"]), @r"
      × `--matrix` takes `key=value,value`
       ╭─[--matrix:1:1]
     1 │ seed
       · ────
       ╰────
      help: for example `--matrix train.with.learning_rate=0.0005,0.001`

      × `few.with.params.most` is a part of `few.with.params`, which the matrix varies
       ╭─[--set:1:1]
     1 │ few.with.params.most=1
       · ────────────────────
       ╰────
      help: set the whole of it, which leaves one variant, or vary the part

    2 problems found; nothing was run
    ");
}
