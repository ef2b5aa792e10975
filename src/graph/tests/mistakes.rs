//! Mistakes in a pipeline or stage: all of them at once, each with its place.

use super::*;

#[test]
fn unknown_keys_are_reported_together() {
    insta::assert_snapshot!(messages("nmae: x\nstages:\n  a: { uses: rows, whit: {} }\n  b: { use: rows }\n"), @r"
     × unknown key `nmae` in a pipeline
      ╭─[pipelines/p.yaml:1:1]
    1 │ nmae: x
      · ──┬─
      ·   ╰── did you mean `name`?
    2 │ stages:
      ╰────
     help: the keys here are `name`, `description`, `seed`, `models`, `stages`, `show`, `profiles`, `matrix`, `cache`, `tracking`, `executor`

     × unknown key `whit` in a stage
      ╭─[pipelines/p.yaml:3:20]
    2 │ stages:
    3 │   a: { uses: rows, whit: {} }
      ·                    ──┬─
      ·                      ╰── did you mean `with`?
    4 │   b: { use: rows }
      ╰────
     help: the keys here are `uses`, `with`, `inputs`, `resources`

     × a stage needs the key `uses`
      ╭─[pipelines/p.yaml:4:3]
    3 │   a: { uses: rows, whit: {} }
    4 │   b: { use: rows }
      ·   ─
      ╰────
     help: add `uses: …`

     × unknown key `use` in a stage
      ╭─[pipelines/p.yaml:4:8]
    3 │   a: { uses: rows, whit: {} }
    4 │   b: { use: rows }
      ·        ─┬─
      ·         ╰── did you mean `uses`?
      ╰────
     help: the keys here are `uses`, `with`, `inputs`, `resources`
    ");
}

#[test]
fn unknown_stage_op_param_input_and_model() {
    insta::assert_snapshot!(messages("\
models: { base: { path: model.gguf } }
stages:
  a: { uses: row }
  b: { uses: rows, with: { limti: 3 } }
  c: { uses: judge, with: { model: bse }, inputs: { row: b } }
  d: { uses: merge, inputs: { x: q } }
"), @r"
     × there is no op or stage `row`
      ╭─[pipelines/p.yaml:3:14]
    2 │ stages:
    3 │   a: { uses: row }
      ·              ─┬─
      ·               ╰── did you mean `rows`?
    4 │   b: { uses: rows, with: { limti: 3 } }
      ╰────
     help: ops: `ask`, `merge`, `rows`; stages (folders of `stages/` with a `stage.yaml`): `evaluate`, `judge`, `judge-dedup`, `merge`, `qlora-train`, `quality-filter`, `stratified-split`

     × the op `rows` has no param `limti`
      ╭─[pipelines/p.yaml:4:28]
    3 │   a: { uses: row }
    4 │   b: { uses: rows, with: { limti: 3 } }
      ·                            ──┬──
      ·                              ╰── did you mean `limit`?
    5 │   c: { uses: judge, with: { model: bse }, inputs: { row: b } }
      ╰────
     help: the op `rows` has `columns`, `limit`, `path`, `url`

     × the stage `judge` needs the input `rows` (What to judge)
      ╭─[pipelines/p.yaml:5:3]
    4 │   b: { uses: rows, with: { limti: 3 } }
    5 │   c: { uses: judge, with: { model: bse }, inputs: { row: b } }
      ·   ─
    6 │   d: { uses: merge, inputs: { x: q } }
      ╰────
     help: add `inputs: { rows: <stage> }`

     × there is no model `bse`
      ╭─[pipelines/p.yaml:5:36]
    4 │   b: { uses: rows, with: { limti: 3 } }
    5 │   c: { uses: judge, with: { model: bse }, inputs: { row: b } }
      ·                                    ─┬─
      ·                                     ╰── did you mean `base`?
    6 │   d: { uses: merge, inputs: { x: q } }
      ╰────
     help: add it under `models:`; there are `base`

     × the stage `judge` has no input `row`
      ╭─[pipelines/p.yaml:5:53]
    4 │   b: { uses: rows, with: { limti: 3 } }
    5 │   c: { uses: judge, with: { model: bse }, inputs: { row: b } }
      ·                                                     ─┬─
      ·                                                      ╰── did you mean `rows`?
    6 │   d: { uses: merge, inputs: { x: q } }
      ╰────
     help: the stage `judge` takes `rows`

     × there is no stage `q`
      ╭─[pipelines/p.yaml:6:34]
    5 │   c: { uses: judge, with: { model: bse }, inputs: { row: b } }
    6 │   d: { uses: merge, inputs: { x: q } }
      ·                                  ─
      ╰────
     help: the stages are `a`, `b`, `c`, `d`
    ");
}

#[test]
fn wrong_types_and_ranges() {
    insta::assert_snapshot!(messages("\
seed: soon
models: { base: { path: model.gguf } }
stages:
  a: { uses: rows, with: { limit: many, columns: id } }
  b: { uses: rows, with: { limit: 0, url: 5 } }
  c:
    uses: ask
    with:
      model: base
      prompt: stages/judge/ask.md
      threshold: 1.5
      mode: fats
      lora: { r: 2.5, drop: 1 }
    inputs: { rows: a }
"), @r"
     × `seed` takes a whole number of 0 or more, this is the text `soon`
      ╭─[pipelines/p.yaml:1:7]
    1 │ seed: soon
      ·       ────
    2 │ models: { base: { path: model.gguf } }
      ╰────
     help: for example `seed: 3407`

     × `limit` takes a whole number of at least 1, this is the text `many`
      ╭─[pipelines/p.yaml:4:35]
    3 │ stages:
    4 │   a: { uses: rows, with: { limit: many, columns: id } }
      ·                                   ────
    5 │   b: { uses: rows, with: { limit: 0, url: 5 } }
      ╰────

     × `columns` takes a list, this is the text `id`
      ╭─[pipelines/p.yaml:4:50]
    3 │ stages:
    4 │   a: { uses: rows, with: { limit: many, columns: id } }
      ·                                                  ──
    5 │   b: { uses: rows, with: { limit: 0, url: 5 } }
      ╰────
     help: write `[a, b]`

     × `limit` takes a whole number of at least 1, this is the integer `0`
      ╭─[pipelines/p.yaml:5:35]
    4 │   a: { uses: rows, with: { limit: many, columns: id } }
    5 │   b: { uses: rows, with: { limit: 0, url: 5 } }
      ·                                   ─
    6 │   c:
      ╰────

     × `url` takes a text, this is the integer `5`
      ╭─[pipelines/p.yaml:5:43]
    4 │   a: { uses: rows, with: { limit: many, columns: id } }
    5 │   b: { uses: rows, with: { limit: 0, url: 5 } }
      ·                                           ─
    6 │   c:
      ╰────
     help: put quotes around it to make it text

     × `threshold` takes a number from 0 to 1, this is the number `1.5`
       ╭─[pipelines/p.yaml:11:18]
    10 │       prompt: stages/judge/ask.md
    11 │       threshold: 1.5
       ·                  ───
    12 │       mode: fats
       ╰────

     × `mode` cannot be `fats`
       ╭─[pipelines/p.yaml:12:13]
    11 │       threshold: 1.5
    12 │       mode: fats
       ·             ──┬─
       ·               ╰── did you mean `fast`?
    13 │       lora: { r: 2.5, drop: 1 }
       ╰────
     help: choose one of `fast`, `exact`

     × `r` takes a whole number of at least 1, this is the number `2.5`
       ╭─[pipelines/p.yaml:13:18]
    12 │       mode: fats
    13 │       lora: { r: 2.5, drop: 1 }
       ·                  ───
    14 │     inputs: { rows: a }
       ╰────

     × `lora` has no param `drop`
       ╭─[pipelines/p.yaml:13:23]
    12 │       mode: fats
    13 │       lora: { r: 2.5, drop: 1 }
       ·                       ──┬─
       ·                         ╰── did you mean `dropout`?
    14 │     inputs: { rows: a }
       ╰────
     help: `lora` has `dropout`, `r`
    ");
}

#[test]
fn missing_params_and_inputs() {
    insta::assert_snapshot!(messages("stages:\n  a: { uses: ask }\n  b: { uses: judge, with: {} }\n"), @r"
     × the op `ask` needs the param `model` (The model that answers)
      ╭─[pipelines/p.yaml:2:3]
    1 │ stages:
    2 │   a: { uses: ask }
      ·   ─
    3 │   b: { uses: judge, with: {} }
      ╰────
     help: add `model: …` under `with:`; it takes the name of a model under `models:`

     × the op `ask` needs the param `prompt`
      ╭─[pipelines/p.yaml:2:3]
    1 │ stages:
    2 │   a: { uses: ask }
      ·   ─
    3 │   b: { uses: judge, with: {} }
      ╰────
     help: add `prompt: …` under `with:`; it takes the name of a text file

     × the op `ask` needs the input `rows` (Rows to ask about)
      ╭─[pipelines/p.yaml:2:3]
    1 │ stages:
    2 │   a: { uses: ask }
      ·   ─
    3 │   b: { uses: judge, with: {} }
      ╰────
     help: add `inputs: { rows: <stage> }`

     × the stage `judge` needs the param `model` (The judge)
      ╭─[pipelines/p.yaml:3:3]
    2 │   a: { uses: ask }
    3 │   b: { uses: judge, with: {} }
      ·   ─
      ╰────
     help: add `model: …` under `with:`; it takes the name of a model under `models:`

     × the stage `judge` needs the input `rows` (What to judge)
      ╭─[pipelines/p.yaml:3:3]
    2 │   a: { uses: ask }
    3 │   b: { uses: judge, with: {} }
      ·   ─
      ╰────
     help: add `inputs: { rows: <stage> }`
    ");
}

#[test]
fn cycles_are_named() {
    insta::assert_snapshot!(messages("\
stages:
  a: { uses: merge, inputs: { x: c } }
  b: { uses: merge, inputs: { x: a } }
  c: { uses: merge, inputs: { x: b } }
  d: { uses: merge, inputs: { x: d } }
"), @r"
     × these wait for each other: a → b → c → a
      ╭─[pipelines/p.yaml:2:34]
    1 │ stages:
    2 │   a: { uses: merge, inputs: { x: c } }
      ·                                  ┬
      ·                                  ╰── this input closes the cycle
    3 │   b: { uses: merge, inputs: { x: a } }
      ╰────
     help: remove or change one of the inputs named here

     × these wait for each other: d → d
      ╭─[pipelines/p.yaml:5:34]
    4 │   c: { uses: merge, inputs: { x: b } }
    5 │   d: { uses: merge, inputs: { x: d } }
      ·                                  ┬
      ·                                  ╰── this input closes the cycle
      ╰────
     help: remove or change one of the inputs named here
    ");
}

#[test]
fn missing_columns_name_those_there_are() {
    insta::assert_snapshot!(messages("\
models: { base: { path: model.gguf } }
stages:
  a: { uses: rows, with: { columns: [id, Questions] } }
  b: { uses: judge, inputs: { rows: a }, with: { model: base } }
"), @r"
     × the input `rows` of the stage `judge` needs the column `question`, which `a` does not have
      ╭─[pipelines/p.yaml:4:37]
    3 │   a: { uses: rows, with: { columns: [id, Questions] } }
    4 │   b: { uses: judge, inputs: { rows: a }, with: { model: base } }
      ·                                     ┬
      ·                                     ╰── did you mean `Questions`?
      ╰────
     help: `a` has the columns `id`, `Questions`
    ");
}

#[test]
fn wrong_outputs_and_kinds() {
    insta::assert_snapshot!(messages("\
models: { base: { path: model.gguf } }
stages:
  a: { uses: rows, with: { columns: [id, question] } }
  b: { uses: judge, inputs: { rows: a }, with: { model: base } }
  c: { uses: merge, inputs: { x: b } }
  d: { uses: merge, inputs: { x: b.keep } }
  e: { uses: judge, inputs: { rows: b.log }, with: { model: base } }
"), @r"
     × `b` has several outputs: `kept`, `log`
      ╭─[pipelines/p.yaml:5:34]
    4 │   b: { uses: judge, inputs: { rows: a }, with: { model: base } }
    5 │   c: { uses: merge, inputs: { x: b } }
      ·                                  ─
    6 │   d: { uses: merge, inputs: { x: b.keep } }
      ╰────
     help: name one, such as `b.kept`

     × `b` has no output `keep`
      ╭─[pipelines/p.yaml:6:34]
    5 │   c: { uses: merge, inputs: { x: b } }
    6 │   d: { uses: merge, inputs: { x: b.keep } }
      ·                                  ──────
    7 │   e: { uses: judge, inputs: { rows: b.log }, with: { model: base } }
      ╰────
     help: its outputs are `kept`, `log`

     × the input `rows` of the stage `judge` takes a table, `b.log` gives files
      ╭─[pipelines/p.yaml:7:37]
    6 │   d: { uses: merge, inputs: { x: b.keep } }
    7 │   e: { uses: judge, inputs: { rows: b.log }, with: { model: base } }
      ·                                     ─────
      ╰────
     help: its outputs of the right kind are `verdicts`
    ");
}

#[test]
fn problems_of_an_op_stand_at_its_param() {
    insta::assert_snapshot!(messages("stages:\n  a:\n    uses: merge\n    with: { query: bad }\n"), @r"
     × the query has no FROM
      ╭─[pipelines/p.yaml:4:20]
    3 │     uses: merge
    4 │     with: { query: bad }
      ·                    ───
      ╰────
     help: add one
    ");
}

#[test]
fn missing_files_and_models() {
    insta::assert_snapshot!(messages("\
models:
  base: { path: nowhere.gguf }
  both: { path: a, hf: b }
  typo: { hff: b }
stages:
  a: { uses: rows, with: { columns: [id, question] } }
  b: { uses: judge, inputs: { rows: a }, with: { model: base, prompt: asks.md } }
"), @r"
     × the model `base` is not at `nowhere.gguf`
      ╭─[pipelines/p.yaml:2:3]
    1 │ models:
    2 │   base: { path: nowhere.gguf }
      ·   ────
    3 │   both: { path: a, hf: b }
      ╰────
     help: a model path is a GGUF file or a folder with `config.json`; correct it, or put the model there

     × a model needs exactly one of `path`, `hf` and `url`; `both` has `path`, `hf`
      ╭─[pipelines/p.yaml:3:3]
    2 │   base: { path: nowhere.gguf }
    3 │   both: { path: a, hf: b }
      ·   ────
    4 │   typo: { hff: b }
      ╰────
     help: keep the one place the model comes from

     × unknown key `hff` in a model
      ╭─[pipelines/p.yaml:4:11]
    3 │   both: { path: a, hf: b }
    4 │   typo: { hff: b }
      ·           ─┬─
      ·            ╰── did you mean `hf`?
    5 │ stages:
      ╰────
     help: the keys here are `path`, `hf`, `revision`, `url`, `name`, `api_key_env`

     × there is no file `asks.md`
      ╭─[pipelines/p.yaml:7:71]
    6 │   a: { uses: rows, with: { columns: [id, question] } }
    7 │   b: { uses: judge, inputs: { rows: a }, with: { model: base, prompt: asks.md } }
      ·                                                                       ───────
      ╰────
     help: looked for `pipelines/asks.md`, `asks.md`, `stages/judge/asks.md`
    ");
}

#[test]
fn faults_of_a_stage_definition() {
    let stage = "\
params:
  x: { type: integr }
  y: { type: integer, default: a }
inputs:
  rows: { kind: tabel }
outputs:
  out: { from: kept }
  other: { from: keep.rows, columns: [answer] }
steps:
  keep: { op: merge, with: { query: $z }, inputs: { r: row } }
  find: { op: mege }
";
    let project = Project::new(&[
        ("stages/bad/stage.yaml", stage),
        (
            "pipelines/p.yaml",
            "stages:\n  a: { uses: rows }\n  b: { uses: bad, inputs: { rows: a } }\n",
        ),
    ]);
    insta::assert_snapshot!(project.messages(Request::default()), @r"
     × there is no param type `integr`
      ╭─[stages/bad/stage.yaml:2:14]
    1 │ params:
    2 │   x: { type: integr }
      ·              ───┬──
      ·                 ╰── did you mean `integer`?
    3 │   y: { type: integer, default: a }
      ╰────
     help: the types are `boolean`, `integer`, `number`, `text`, `choice`, `model`, `file`, `path`, `list`, `record`, `map`, `any`

     × `y` takes a whole number, this is the text `a`
      ╭─[stages/bad/stage.yaml:3:32]
    2 │   x: { type: integr }
    3 │   y: { type: integer, default: a }
      ·                                ─
    4 │ inputs:
      ╰────

     × there is no artifact kind `tabel`
      ╭─[stages/bad/stage.yaml:5:17]
    4 │ inputs:
    5 │   rows: { kind: tabel }
      ·                 ──┬──
      ·                   ╰── did you mean `table`?
    6 │ outputs:
      ╰────
     help: the kinds are `table`, `files`, `any`

     × the stage has no step or input `kept`
      ╭─[stages/bad/stage.yaml:7:16]
    6 │ outputs:
    7 │   out: { from: kept }
      ·                ────
    8 │   other: { from: keep.rows, columns: [answer] }
      ╰────
     help: there are `keep`, `find`

     × the stage `bad` has no param `z`
       ╭─[stages/bad/stage.yaml:10:37]
     9 │ steps:
    10 │   keep: { op: merge, with: { query: $z }, inputs: { r: row } }
       ·                                     ──
    11 │   find: { op: mege }
       ╰────
     help: declare it under `params:` (there are `y`, `seed`), or write `$$z` for the text

     × the stage has no step or input `row`
       ╭─[stages/bad/stage.yaml:10:56]
     9 │ steps:
    10 │   keep: { op: merge, with: { query: $z }, inputs: { r: row } }
       ·                                                        ─┬─
       ·                                                         ╰── did you mean `rows`?
    11 │   find: { op: mege }
       ╰────
     help: there are `keep`, `find`, `rows`

     × there is no op `mege`
       ╭─[stages/bad/stage.yaml:11:15]
    10 │   keep: { op: merge, with: { query: $z }, inputs: { r: row } }
    11 │   find: { op: mege }
       ·               ──┬─
       ·                 ╰── did you mean `merge`?
       ╰────
     help: the ops are `ask`, `merge`, `rows`
    ");
}
