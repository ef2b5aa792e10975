//! Runs `embed`.

use super::Params;
use crate::lm::{Embedder, LoadOptions};
use crate::ops::{Cell, ColumnType, Context, OpError, Outputs, Table};

/// Rows embedded between two looks at the cancel flag.
const BATCH: usize = 64;

pub fn run(context: &mut Context) -> Result<Outputs, OpError> {
    let params: Params = context.params()?;
    let quote = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
    let rows = context.query(&format!(
        "select id::varchar, coalesce({}::varchar, ''), coalesce({}::varchar, '') from rows order by id",
        quote(&params.text),
        quote(&params.compare_to)
    ))?;
    let embedder = Embedder::load(context.model_path("model")?, &LoadOptions::default())?;
    let mut table = Table::new(&[("id", ColumnType::Text), ("similarity", ColumnType::Double)]);
    let total = rows.rows.len();
    let mut sum = 0.0;
    for batch in rows.rows.chunks(BATCH) {
        context.check_cancelled()?;
        let column = |at: usize| -> Vec<String> {
            batch
                .iter()
                .map(|row| row[at].as_str().unwrap_or_default().to_owned())
                .collect()
        };
        let (left, right) = (embedder.embed(&column(1))?, embedder.embed(&column(2))?);
        for ((row, left), right) in batch.iter().zip(&left).zip(&right) {
            // Both are L2-normalised, so the dot product is the cosine.
            let similarity: f64 = left.iter().zip(right).map(|(a, b)| f64::from(a * b)).sum();
            sum += similarity;
            table
                .rows
                .push(vec![row[0].clone(), Cell::from(similarity)]);
        }
        context.progress(table.rows.len() as u64, total as u64, "rows", "");
    }
    context.report(
        "mean_similarity",
        if total == 0 { 0.0 } else { sum / total as f64 },
    );
    context.give_table("rows", &table, false)?;
    context.finish()
}
