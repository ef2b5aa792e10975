//! `flow export --dataset`: the rows of the training as the Hugging Face hub keeps data sets: Parquet files under `data/`
//! and a card whose head says which file is which split.

use std::collections::BTreeMap;
use std::path::Path;

use duckdb::Connection;

use crate::cache::CacheError;
use crate::cli::error::CliError;
use crate::cli::output::Output;
use crate::cli::trained::Trained;
use crate::config::display;
use crate::ui::plural;

pub fn write(trained: &Trained, folder: &Path, output: &Output) -> Result<(), CliError> {
    if trained.tables.is_empty() {
        return Err(CliError::failed(
            format!(
                "the tables that `{}` of the run {} read are not in its record",
                trained.node, trained.id
            ),
            Some("run the pipeline again; what is cached is not done again".to_owned()),
        ));
    }
    let data = folder.join("data");
    fs_err::create_dir_all(&data)?;
    let mut splits = Vec::new();
    for (name, table) in &trained.tables {
        let file = data.join(format!("{name}-00000-of-00001.parquet"));
        let inputs = BTreeMap::from([("data".to_owned(), table.clone())]);
        let columns = trained.cache.with_views(&inputs, |connection| {
            copy(connection, &file)?;
            columns(connection)
        })?;
        splits.push(Split {
            name: name.clone(),
            rows: table.rows.unwrap_or(0),
            bytes: fs_err::metadata(&file)?.len(),
            columns,
        });
    }
    fs_err::write(folder.join("README.md"), card(trained, &splits))?;
    output.print(&display(folder))
}

struct Split {
    name: String,
    rows: u64,
    /// Of the file.
    bytes: u64,
    /// Names and types of DuckDB.
    columns: Vec<(String, String)>,
}

fn copy(connection: &Connection, file: &Path) -> Result<(), CliError> {
    let target = file.display().to_string().replace('\'', "''");
    let failed = |error: duckdb::Error| CacheError::Query(error.to_string());
    connection
        .execute_batch(&format!(
            "copy (from data) to '{target}' (format parquet, compression zstd)"
        ))
        .map_err(failed)?;
    Ok(())
}

fn columns(connection: &Connection) -> Result<Vec<(String, String)>, CliError> {
    let failed = |error: duckdb::Error| CacheError::Query(error.to_string());
    let mut statement = connection.prepare("describe data").map_err(failed)?;
    let rows = statement
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
        .map_err(failed)?;
    Ok(rows.collect::<Result<_, _>>().map_err(failed)?)
}

/// The card. Its head is YAML; JSON strings are YAML strings.
fn card(trained: &Trained, splits: &[Split]) -> String {
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let total: u64 = splits.iter().map(|split| split.rows).sum();
    let mut text = format!(
        "---\npretty_name: {}\nlanguage: [en]\ntask_categories: [question-answering]\nsize_categories: [{}]\n",
        quoted(&trained.pipeline),
        size(total)
    );
    text.push_str("configs:\n- config_name: default\n  data_files:\n");
    for split in splits {
        text.push_str(&format!(
            "  - split: {0}\n    path: data/{0}-*\n",
            split.name
        ));
    }
    text.push_str("---\n\n");
    text.push_str(&format!(
        "# {}\n\nThe rows that `{}` of the pipeline `{}` was trained and validated on, as the run `{}` of flow {} made them.\n\n",
        trained.pipeline, trained.node, trained.pipeline, trained.id, env!("CARGO_PKG_VERSION")
    ));
    text.push_str("| split | rows | bytes |\n|---|---:|---:|\n");
    for split in splits {
        text.push_str(&format!(
            "| {} | {} | {} |\n",
            split.name, split.rows, split.bytes
        ));
    }
    text.push_str("\n| column | type |\n|---|---|\n");
    for (name, kind) in splits
        .first()
        .map(|split| split.columns.as_slice())
        .unwrap_or_default()
    {
        text.push_str(&format!("| `{name}` | {} |\n", kind.to_lowercase()));
    }
    text.push_str("\n## How a row became a conversation\n\n");
    if !trained.system.is_empty() {
        text.push_str(&format!("System: {}\n\n", trained.system));
    }
    text.push_str(&format!(
        "User, a template over the columns:\n\n```\n{}\n```\n\nThe response is the column `{}`. The model was {}.\n",
        trained.user, trained.response, trained.base_name
    ));
    text.push_str(&format!(
        "\nThe rights to the rows are those of their source; this card states none.\n\n{} in all.\n",
        plural(total, "row")
    ));
    text
}

/// The hub's words for a number of rows.
fn size(rows: u64) -> &'static str {
    match rows {
        0..1_000 => "n<1K",
        1_000..10_000 => "1K<n<10K",
        10_000..100_000 => "10K<n<100K",
        100_000..1_000_000 => "100K<n<1M",
        _ => "n>1M",
    }
}
