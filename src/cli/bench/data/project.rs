//! The project that is measured: the data stages of the MedQuAD pipeline, with verdicts made by SQL in the judge's place.

use std::path::{Path, PathBuf};

use fs_err as fs;

use crate::cli::error::CliError;
use crate::config::stage_file;

/// Files of `judge-dedup`, whose steps are taken one by one.
const FILES: [&str; 3] = ["groups.sql", "keep.sql", "report.sql"];

const WHOLE: &str = r#"
  groups:
    uses: sql
    inputs: { rows: source.rows }
    with: { file: groups.sql, params: { normalise: exact } }
  verdicts:
    uses: sql
    inputs: { groups: groups.rows }
    with: { query: "select id, if(hash(id) % 20 = 0, 0, 1 + hash(id) % len(ids))::bigint as choice, 0.9 as probability from groups" }
  keep:
    uses: sql
    inputs: { rows: source.rows, groups: groups.rows, verdicts: verdicts.rows }
    with: { file: keep.sql, report: report.sql }
  merged:
    uses: merge
    inputs: { original: source.rows, deduped: keep.rows, groups: groups.rows }
  split:
    uses: stratified-split
    inputs: { rows: merged.rows }
    with: { by: question_type, validation: 0.2 }
"#;

/// Source, groups, verdicts, keep, merge, split. Gives the pipeline file; `data` lies in `folder`.
pub fn whole(folder: &Path, data: &str) -> Result<PathBuf, CliError> {
    for file in FILES {
        let text = stage_file("judge-dedup", file).ok_or_else(|| {
            CliError::failed(format!("the stage `judge-dedup` has no `{file}`"), None)
        })?;
        fs::write(folder.join(file), text)?;
    }
    write(folder, data, WHOLE)
}

/// The source alone.
pub fn reading(folder: &Path, data: &str) -> Result<PathBuf, CliError> {
    write(folder, data, "")
}

fn write(folder: &Path, data: &str, stages: &str) -> Result<PathBuf, CliError> {
    // Makes `folder` the project whatever it lies in.
    fs::create_dir_all(folder.join("stages"))?;
    let path = folder.join("data.yaml");
    let text = format!(
        "name: data\nseed: 1\nstages:\n  source: {{ uses: source, with: {{ path: {data} }} }}{stages}"
    );
    fs::write(&path, text)?;
    Ok(path)
}
