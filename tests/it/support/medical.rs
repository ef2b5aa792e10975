//! A project shaped like `pipelines/medquad.yaml`: the same stages, tables and column names, with rules in SQL where
//! that one asks a model, so that it runs in a second and anywhere.

use super::Project;

const PIPELINE: &str = "\
name: medical
seed: 3407
stages:
  questions: { uses: source, with: { path: rows.jsonl } }
  dedup: { uses: dedup, inputs: { rows: questions.rows } }
  merged: { uses: merge, inputs: { original: questions.rows, deduped: dedup.rows, groups: dedup.groups } }
  clean: { uses: filter, inputs: { rows: merged } }
  split: { uses: stratified-split, inputs: { rows: clean }, with: { by: question_type, validation: 0.2 } }
  train: { uses: fit, inputs: { train: split.train } }
  evaluate: { uses: evaluate-by-rule, inputs: { rows: split.validation, adapter: train.adapter } }
profiles:
  strict: { clean.with.threshold: 0.7 }
";

const DEDUP: &str = "\
description: Like judge-dedup.
params: { shift: { type: integer, default: 0, doc: Moves every choice. } }
inputs: { rows: { columns: [id, question, answer] } }
outputs: { rows: { from: keep }, groups: { from: groups } }
steps:
  groups: { op: sql, inputs: { rows: rows }, with: { file: groups.sql, params: { normalise: exact } } }
  judge:
    op: sql
    inputs: { rows: groups }
    with:
      query: select id, ((length(question) + $shift) % (len(answers) + 1))::bigint as choice, 0.75::double as probability, false as truncated from rows
      params: { shift: $shift }
  keep: { op: sql, inputs: { rows: rows, groups: groups, verdicts: judge }, with: { file: keep.sql } }
";

const FILTER: &str = "\
description: Like quality-filter.
params: { threshold: { type: number, default: 0.5 } }
inputs: { rows: { columns: [id, question, answer] } }
outputs: { rows: { from: keep } }
steps:
  judge: { op: sql, inputs: { rows: rows }, with: { query: 'select id, (length(answer) % 9 <> 0)::bigint as choice, 0.5 + (length(answer) % 50) / 100.0 as probability, false as truncated from rows' } }
  keep: { op: sql, inputs: { rows: rows, verdicts: judge }, with: { file: keep.sql, params: { threshold: $threshold } } }
";

const FIT: &str = "\
description: An adapter's folder without training.
inputs: { train: { columns: [id] } }
outputs: { adapter: { from: fit } }
steps:
  fit: { op: command, inputs: { train: train }, with: { run: 'echo adapter > $OUT/adapter.txt' } }
";

const EVALUATE: &str = "\
description: Like evaluate.
params: { words: { type: integer, default: 12, doc: Words that the tuned model says. } }
inputs: { rows: { columns: [id, question, answer] }, adapter: { kind: files } }
outputs: { summary: { from: summary }, samples: { from: samples } }
steps:
  base: { op: sql, inputs: { rows: rows }, with: { query: \"select id, array_to_string(list_slice(string_split(answer, ' '), 3, 9), ' ') as prediction from rows\" } }
  tuned: { op: sql, inputs: { rows: rows }, with: { query: \"select id, array_to_string(list_slice(string_split(answer, ' '), 1 + length(question) % 5, $words), ' ') as prediction from rows\", params: { words: $words } } }
  base_answers: { op: sql, inputs: { rows: rows, predictions: base }, with: { file: answers.sql, params: { response: answer } } }
  tuned_answers: { op: sql, inputs: { rows: rows, predictions: tuned }, with: { file: answers.sql, params: { response: answer } } }
  base_score: { op: score, inputs: { rows: base_answers } }
  tuned_score: { op: score, inputs: { rows: tuned_answers } }
  base_embed: { op: sql, inputs: { rows: base_answers }, with: { query: 'select id, 0.5::double as similarity from rows' } }
  tuned_embed: { op: sql, inputs: { rows: tuned_answers }, with: { query: 'select id, 0.75::double as similarity from rows' } }
  base_agreement: { op: sql, inputs: { rows: base_answers }, with: { query: 'select id, 1 + (length(prediction) % 5)::bigint as choice, 0.5 as probability, false as truncated from rows' } }
  tuned_agreement: { op: sql, inputs: { rows: tuned_answers }, with: { query: 'select id, 1 + (length(prediction) % 5)::bigint as choice, 0.5 as probability, false as truncated from rows' } }
  samples:
    op: sql
    inputs: { base_answers: base_answers, tuned_answers: tuned_answers, base_score: base_score.rows, tuned_score: tuned_score.rows, base_embed: base_embed, tuned_embed: tuned_embed, base_agreement: base_agreement, tuned_agreement: tuned_agreement }
    with: { file: samples.sql }
  summary:
    op: bootstrap
    inputs: { rows: samples }
    with:
      resamples: 500
      metrics:
        exact_match: [base_exact_match, tuned_exact_match]
        f1: [base_f1, tuned_f1]
        agreement: [base_agreement, tuned_agreement]
        similarity: [base_similarity, tuned_similarity]
";

impl Project {
    /// The rows of `pipelines/data/sample.jsonl` through the stages above and the built-in `merge` and `stratified-split`.
    pub fn medical() -> Self {
        let own = |path: &str| {
            let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
            std::fs::read_to_string(root.join(path)).expect("a file of this repository")
        };
        Self::with_pipeline(PIPELINE)
            .file("rows.jsonl", &own("pipelines/data/sample.jsonl"))
            .file("stages/dedup/stage.yaml", DEDUP)
            .file(
                "stages/dedup/groups.sql",
                &own("stages/judge-dedup/groups.sql"),
            )
            .file("stages/dedup/keep.sql", &own("stages/judge-dedup/keep.sql"))
            .file("stages/filter/stage.yaml", FILTER)
            .file(
                "stages/filter/keep.sql",
                &own("stages/quality-filter/keep.sql"),
            )
            .file("stages/fit/stage.yaml", FIT)
            .file("stages/evaluate-by-rule/stage.yaml", EVALUATE)
            .file(
                "stages/evaluate-by-rule/answers.sql",
                &own("stages/evaluate/answers.sql"),
            )
            .file(
                "stages/evaluate-by-rule/samples.sql",
                &own("stages/evaluate/samples.sql"),
            )
    }

    /// [`Project::medical`], run twice, the second time with `settings`.
    pub fn medical_twice(settings: &[&str]) -> Self {
        let project = Self::medical();
        project.run();
        let mut arguments = vec!["run", "pipelines/p.yaml"];
        for setting in settings {
            arguments.extend(["--set", setting]);
        }
        project.flow(&arguments).success();
        project
    }
}
