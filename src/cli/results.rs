//! What a finished run has to show: the tables that the pipeline and its stages declare with `show`.

use std::collections::BTreeMap;

use super::error::CliError;
use super::output::Output;
use super::rows::Rows;
use super::shared;
use crate::cache::Cache;
use crate::engine::RunOutcome;
use crate::graph::Shown;
use crate::ui::count;

/// Rows of one table; the rest is looked at with `flow data`.
const MOST_ROWS: u64 = 20;

/// Prints the tables shown by those nodes that took part in the run, under the names the user knows them by.
pub fn print(
    shown: &[Shown],
    outcome: &RunOutcome,
    cache: &Cache,
    output: &Output,
) -> Result<(), CliError> {
    for shown in shown {
        let node = outcome.nodes.iter().find(|node| node.name == shown.node);
        let Some(artifact) = node.and_then(|node| node.outputs.get(&shown.output)) else {
            continue;
        };
        if !shared::bring(cache, artifact, output)? {
            output.warning(&format!(
                "`{}` is not shown: what it holds is in the shared cache, and cannot be fetched now",
                shown.name
            ));
            continue;
        }
        let total = artifact.rows.unwrap_or_default();
        // Where the order does not count it is anybody's, and two runs would print two tables.
        let order = if cache.is_ordered(&artifact.digest) {
            ""
        } else {
            "order by all"
        };
        let inputs = BTreeMap::from([("data".to_owned(), artifact.clone())]);
        let rows = cache.with_views(&inputs, |connection| {
            Rows::read(connection, &format!("from data {order} limit {MOST_ROWS}"))
        })?;
        output.print(&format!(
            "\n{}\n{}",
            output.style.bold(&shown.name),
            rows.as_text(output.width)
        ))?;
        if total > MOST_ROWS {
            output.tell(&format!(
                "{MOST_ROWS} of {} rows; `flow data latest {} --limit {total}` shows all",
                count(total),
                shown.name
            ));
        }
    }
    Ok(())
}
