//! Rows that entered, left or changed a table from one run to another, by id.

use std::collections::HashMap;

use serde::Serialize;

use super::nodes::shown_tables;
use crate::cache::{CacheError, quote};
use crate::insight::Tables;
use crate::insight::scores::scored;
use crate::ops::Cell;

/// Rows named of each kind.
const EXAMPLES: usize = 5;

/// A table that differs from that of the first run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Dataset {
    pub output: String,
    /// The run that is compared with the first.
    pub run: String,
    pub entered: u64,
    pub left: u64,
    /// Rows whose id is in both and whose content is not the same.
    pub changed: u64,
    pub same: u64,
    /// The first by id of those that entered, left, changed.
    pub entered_rows: Vec<Example>,
    pub left_rows: Vec<Example>,
    pub changed_rows: Vec<Example>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Example {
    pub id: String,
    /// Its question, or the first text it has.
    pub text: String,
}

pub(super) fn datasets(tables: &[Tables]) -> Result<Vec<Dataset>, CacheError> {
    let mut found = Vec::new();
    let Some((first, others)) = tables.split_first() else {
        return Ok(found);
    };
    let scored = scored(first.run());
    for full in shown_tables(first.run()) {
        // What happened to rows with scores is told by the scores.
        if !first.has(&full, &["id"]) || scored.iter().any(|scored| scored.table == full) {
            continue;
        }
        let name = first.run().short_name(&full);
        let before = first.output(&full).map(|output| output.digest);
        let mut known: Option<Hashes> = None;
        for other in others {
            let Ok(output) = other.run().view.output(&name) else {
                continue;
            };
            if Some(output.output.digest) == before || !other.has(&output.full(), &["id"]) {
                continue;
            }
            let before = match known.take() {
                Some(read) => known.insert(read),
                None => known.insert(hashes(first, &full)?),
            };
            let after = hashes(other, &output.full())?;
            found.push(dataset(
                (first, &full, before),
                (other, &output.full(), &after),
                &name,
            )?);
        }
    }
    Ok(found)
}

/// Ids with a hash of the whole row.
type Hashes = HashMap<String, u64>;

fn hashes(tables: &Tables, full: &str) -> Result<Hashes, CacheError> {
    // 63 bits, since cells are signed; two rows of one id that differ agree by chance in 1 of 10¹⁹.
    let sql = "select id::varchar, (hash(to_json(data)::varchar) >> 1)::bigint from data";
    let rows = tables.query(&[("data", full)], sql)?;
    let pair = |cells: &Vec<Cell>| Some((cells[0].as_str()?.to_owned(), cells[1].as_i64()? as u64));
    Ok(rows.rows.iter().filter_map(pair).collect())
}

type Named<'a> = (&'a Tables<'a>, &'a str, &'a Hashes);

fn dataset(before: Named, after: Named, name: &str) -> Result<Dataset, CacheError> {
    let missing_in = |rows: &Hashes, other: &Hashes| {
        let mut ids: Vec<String> = rows
            .keys()
            .filter(|id| !other.contains_key(*id))
            .cloned()
            .collect();
        ids.sort();
        ids
    };
    let entered = missing_in(after.2, before.2);
    let left = missing_in(before.2, after.2);
    let mut changed: Vec<String> = after
        .2
        .iter()
        .filter(|(id, hash)| before.2.get(*id).is_some_and(|known| known != *hash))
        .map(|(id, _)| id.clone())
        .collect();
    changed.sort();
    Ok(Dataset {
        output: name.to_owned(),
        run: after.0.run().id().to_owned(),
        entered: entered.len() as u64,
        left: left.len() as u64,
        changed: changed.len() as u64,
        same: (after.2.len() - entered.len() - changed.len()) as u64,
        entered_rows: examples(after, &entered)?,
        left_rows: examples(before, &left)?,
        changed_rows: examples(after, &changed)?,
    })
}

fn examples((tables, full, _): Named, ids: &[String]) -> Result<Vec<Example>, CacheError> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let columns = tables.columns(full);
    let text = ["question", "text"]
        .into_iter()
        .find(|wanted| columns.iter().any(|(name, _)| name == wanted))
        .or_else(|| {
            let is_text = |(name, kind): &&(String, String)| name != "id" && kind == "VARCHAR";
            columns.iter().find(is_text).map(|(name, _)| name.as_str())
        });
    let text = text.map_or_else(
        || "''".to_owned(),
        |name| format!("{}::varchar", quote(name)),
    );
    let ids: Vec<String> = ids
        .iter()
        .take(EXAMPLES)
        .map(|id| format!("'{}'", id.replace('\'', "''")))
        .collect();
    let sql = format!(
        "select id::varchar, {text} from data where id::varchar in ({}) order by id",
        ids.join(", ")
    );
    let rows = tables.query(&[("data", full)], &sql)?;
    let example = |cells: &Vec<Cell>| Example {
        id: cells[0].as_str().unwrap_or_default().to_owned(),
        text: cells[1].as_str().unwrap_or_default().to_owned(),
    };
    Ok(rows.rows.iter().map(example).collect())
}
