//! Finds the rows that are meant.

use serde::Serialize;

use crate::cache::CacheError;
use crate::insight::Tables;
use crate::insight::roles::Roles;

/// A row by its question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Found {
    pub id: String,
    pub question: String,
}

/// SQL text with quotes.
pub(super) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// Rows of the source that ask this; where none does to the letter, those whose question has it in it, in any case.
pub fn find_by_question(tables: &Tables, text: &str) -> Result<Vec<Found>, CacheError> {
    let Some(source) = Roles::of(tables)
        .source
        .filter(|source| tables.has(source, &["question"]))
    else {
        return Ok(Vec::new());
    };
    let wanted = literal(text.trim());
    for condition in [
        format!("trim(question) = {wanted}"),
        format!("lower(trim(question)) = lower({wanted})"),
        format!("contains(lower(question), lower({wanted}))"),
    ] {
        let sql = format!(
            "select id::varchar, question::varchar from source where {condition} order by question, id limit 1000"
        );
        let rows = tables.query(&[("source", &source)], &sql)?;
        if !rows.rows.is_empty() {
            let found = |cells: &Vec<crate::ops::Cell>| Found {
                id: cells[0].as_str().unwrap_or_default().to_owned(),
                question: cells[1].as_str().unwrap_or_default().to_owned(),
            };
            return Ok(rows.rows.iter().map(found).collect());
        }
    }
    Ok(Vec::new())
}

/// A few ids of the source, to show what they look like.
pub fn some_ids(tables: &Tables) -> Result<Vec<String>, CacheError> {
    let Some(source) = Roles::of(tables).source else {
        return Ok(Vec::new());
    };
    let rows = tables.query(
        &[("source", &source)],
        "select id::varchar from source order by id limit 3",
    )?;
    Ok(rows
        .rows
        .iter()
        .filter_map(|cells| Some(cells[0].as_str()?.to_owned()))
        .collect())
}
