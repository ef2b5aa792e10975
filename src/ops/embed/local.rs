//! Runs `embed`.

use super::Params;
use crate::lm::{Embedder, LoadOptions};
use crate::ops::{Cell, ColumnType, Context, OpError, Outputs, Table};

/// Rows whose texts are in memory as tokens together.
const ROWS_AT_ONCE: usize = 8192;

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
    for part in rows.rows.chunks(ROWS_AT_ONCE) {
        let texts: Vec<&str> = part
            .iter()
            .flat_map(|row| [1, 2].map(|at| row[at].as_str().unwrap_or_default()))
            .collect();
        let before = 2 * table.rows.len();
        let vectors = embedder.embed(&texts, &mut |done| {
            context.progress((before + done) as u64, 2 * total as u64, "texts", "");
            context.check_cancelled()
        })?;
        for (row, pair) in part.iter().zip(vectors.chunks_exact(2)) {
            // Both are L2-normalised, so the dot product is the cosine.
            let similarity: f64 = std::iter::zip(&pair[0], &pair[1])
                .map(|(a, b)| f64::from(a * b))
                .sum();
            sum += similarity;
            table
                .rows
                .push(vec![row[0].clone(), Cell::from(similarity)]);
        }
    }
    context.report(
        "mean_similarity",
        if total == 0 { 0.0 } else { sum / total as f64 },
    );
    context.give_table("rows", &table, false)?;
    context.finish()
}
