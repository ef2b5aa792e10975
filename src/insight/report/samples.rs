//! The rows that say most: those whose main score is best and worst, or changed most.

use serde::Serialize;
use serde_json::{Map, Value};

use super::label;
use crate::cache::{CacheError, quote};
use crate::insight::Tables;
use crate::insight::numbers::Decimals;
use crate::insight::scores::{Metric, Scored};

/// Rows shown of each kind.
const SAMPLES: usize = 5;

/// Rows of one kind.
#[derive(Serialize)]
pub(super) struct Samples {
    title: String,
    rows: Vec<Sample>,
}

#[derive(Serialize)]
struct Sample {
    id: String,
    question: String,
    scores: String,
    /// What it is and what it says.
    texts: Vec<(String, String)>,
}

/// The rows with the largest gains and losses; without a base, those with the best and the worst score.
pub(super) fn samples(tables: &Tables, scored: &Scored) -> Result<Vec<Samples>, CacheError> {
    let main = scored.main_metric();
    let value = quote(&main.value);
    let (change, titles) = match &main.base {
        Some(base) => (
            format!("({value} - {})", quote(base)),
            ["Gained most", "Lost most"],
        ),
        None => (value.clone(), ["Best", "Worst"]),
    };
    let mut found = Vec::new();
    for (title, order, clear) in [(titles[0], "desc", "> 0"), (titles[1], "asc", "< 0")] {
        let clear = main
            .base
            .as_ref()
            .map_or("is not null".to_owned(), |_| clear.to_owned());
        let sql = format!(
            "select * from scored where {change} {clear} order by {change} {order}, id limit {SAMPLES}"
        );
        let rows = tables.objects(&[("scored", &scored.table)], &sql)?;
        if !rows.is_empty() {
            found.push(Samples {
                title: title.to_owned(),
                rows: rows.iter().map(|row| sample(row, main)).collect(),
            });
        }
    }
    Ok(found)
}

fn sample(row: &Map<String, Value>, main: &Metric) -> Sample {
    let text = |column: &str| match row.get(column) {
        Some(Value::String(text)) => text.clone(),
        None | Some(Value::Null) => String::new(),
        Some(other) => other.to_string(),
    };
    let number = |column: &str| row.get(column).and_then(Value::as_f64).unwrap_or(f64::NAN);
    let (base, value) = main.predictions();
    let after = number(&main.value);
    let (mut texts, scores) = match (&base, &main.base) {
        (Some(column), Some(score)) => {
            let before = number(score);
            let decimals = Decimals::of([before, after]);
            (
                vec![
                    ("before tuning".to_owned(), text(column)),
                    ("after tuning".to_owned(), text(&value)),
                ],
                format!(
                    "{} {} → {}",
                    label(&main.name),
                    decimals.plain(before),
                    decimals.plain(after)
                ),
            )
        }
        _ => (
            vec![("prediction".to_owned(), text(&value))],
            format!(
                "{} {}",
                label(&main.name),
                Decimals::of([after]).plain(after)
            ),
        ),
    };
    texts.insert(0, ("reference".to_owned(), text("reference")));
    Sample {
        id: text("id"),
        question: text("question"),
        scores,
        texts,
    }
}
