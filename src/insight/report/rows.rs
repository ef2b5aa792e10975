//! Charts of rows: how many are left after each stage, how questions repeat, of which types they are, how long texts are.

use std::collections::HashSet;

use super::Card;
use crate::cache::{CacheError, quote};
use crate::insight::Tables;
use crate::insight::chart::{self, Bar, Bin};
use crate::insight::roles::Roles;
use crate::insight::scores::Scored;
use crate::ui::{count, plural};

/// Bars of a chart at most; the rest is one bar more.
const MOST_BARS: usize = 16;

pub(super) fn cards(
    tables: &Tables,
    roles: &Roles,
    scored: &[Scored],
) -> Result<Vec<Card>, CacheError> {
    let mut cards = Vec::new();
    cards.extend(funnel(tables));
    cards.extend(repeated_questions(tables, roles)?);
    cards.extend(groups(tables, roles)?);
    for (title, table, column) in texts(tables, roles, scored) {
        cards.extend(lengths(tables, &title, &table, &column)?);
    }
    Ok(cards)
}

/// Rows of every table with ids that a stage gives.
fn funnel(tables: &Tables) -> Option<Card> {
    let run = tables.run();
    let exported: HashSet<&String> = run.view.head.exports.values().collect();
    let mut bars = Vec::new();
    let mut first = None;
    for full in tables.names() {
        let is_bare = full
            .rsplit_once('.')
            .and_then(|(node, _)| run.graph.node(node))
            .is_some_and(|node| node.name == node.stage);
        let rows = tables.output(full).and_then(|output| output.rows);
        let (true, Some(rows)) = (
            (is_bare || exported.contains(full)) && tables.has(full, &["id"]),
            rows,
        ) else {
            continue;
        };
        let first = *first.get_or_insert(rows.max(1));
        bars.push(Bar {
            label: run.short_name(full),
            value: rows as f64,
            of: None,
            note: format!(
                "{} · {:.0} %",
                count(rows),
                100.0 * rows as f64 / first as f64
            ),
        });
    }
    (bars.len() > 1).then(|| Card {
        title: "Rows after each stage".to_owned(),
        note: "rows, and their share of those that came in".to_owned(),
        svg: chart::bars("Rows after each stage", &bars),
    })
}

/// How many different answers the questions have that come more than once.
fn repeated_questions(tables: &Tables, roles: &Roles) -> Result<Option<Card>, CacheError> {
    const MOST: i64 = 24;
    let Some(source) = &roles.source else {
        return Ok(None);
    };
    if !tables.has(source, &["question", "answer"]) {
        return Ok(None);
    }
    let sql = "select answers::bigint, count(*)::bigint from
        (select count(distinct answer) as answers from source group by question)
        where answers > 1 group by answers order by answers";
    let found = tables.query(&[("source", source)], sql)?;
    let found: Vec<(i64, u64)> = found
        .rows
        .iter()
        .filter_map(|row| Some((row[0].as_i64()?, row[1].as_i64()? as u64)))
        .collect();
    let Some((last, _)) = found.last() else {
        return Ok(None);
    };
    let bin = |answers: i64| Bin {
        label: if answers == MOST {
            format!("≥ {MOST}")
        } else {
            answers.to_string()
        },
        count: found
            .iter()
            .filter(|(value, _)| (*value).min(MOST) == answers)
            .map(|(_, count)| count)
            .sum(),
    };
    let bins: Vec<Bin> = (2..=(*last).min(MOST)).map(bin).collect();
    let total = found.iter().map(|(_, count)| count).sum();
    let title = "Questions with several answers";
    Ok(Some(Card {
        title: title.to_owned(),
        note: format!(
            "{} with different answers in the source",
            plural(total, "question")
        ),
        svg: chart::histogram(title, "different answers to one question", &bins),
    }))
}

/// Rows by question type (or whatever the split is stratified by): those kept, of those that came in.
fn groups(tables: &Tables, roles: &Roles) -> Result<Option<Card>, CacheError> {
    let (Some(source), Some(group), Some(kept)) = (&roles.source, &roles.group, &roles.kept) else {
        return Ok(None);
    };
    let column = quote(group);
    let sql = format!(
        "with a as (select coalesce({column}::varchar, '') as name, count(*) as n from source group by 1),
        b as (select coalesce({column}::varchar, '') as name, count(*) as n from kept group by 1)
        select name, a.n::bigint, coalesce(b.n, 0)::bigint from a left join b using (name) order by a.n desc, name"
    );
    let found = tables.query(&[("source", source), ("kept", kept)], &sql)?;
    let mut rows: Vec<(String, u64, u64)> = found
        .rows
        .iter()
        .filter_map(|row| {
            let name = row[0].as_str()?;
            let name = if name.is_empty() { "(none)" } else { name };
            Some((
                name.to_owned(),
                row[1].as_i64()? as u64,
                row[2].as_i64()? as u64,
            ))
        })
        .collect();
    if rows.len() < 2 {
        return Ok(None);
    }
    let types = rows.len();
    if types > MOST_BARS + 1 {
        let rest = rows.split_off(MOST_BARS);
        rows.push((
            format!("{} others", rest.len()),
            rest.iter().map(|row| row.1).sum(),
            rest.iter().map(|row| row.2).sum(),
        ));
    }
    let bars: Vec<Bar> = rows
        .into_iter()
        .map(|(label, of, kept)| Bar {
            label,
            value: kept as f64,
            of: Some(of as f64),
            note: format!("{} of {}", count(kept), count(of)),
        })
        .collect();
    let title = format!("Rows by {}", group.replace('_', " "));
    let svg = chart::bars(&title, &bars);
    Ok(Some(Card {
        title,
        note: format!(
            "rows kept ({}) of rows in the source, {types} kinds",
            tables.run().short_name(kept)
        ),
        svg,
    }))
}

/// Texts whose lengths say something: questions and answers learnt from, and answers generated.
fn texts(tables: &Tables, roles: &Roles, scored: &[Scored]) -> Vec<(String, String, String)> {
    let mut texts = Vec::new();
    if let Some(kept) = &roles.kept {
        for column in ["question", "answer"] {
            if tables.has(kept, &[column]) {
                texts.push((
                    format!("Length of {column}s"),
                    kept.clone(),
                    column.to_owned(),
                ));
            }
        }
    }
    for scored in scored {
        let (base, value) = scored.main_metric().predictions();
        let titles = if base.is_some() {
            [
                "Length of answers before tuning",
                "Length of answers after tuning",
            ]
        } else {
            ["", "Length of predictions"]
        };
        for (column, title) in [base, Some(value)].into_iter().zip(titles) {
            if let Some(column) = column.filter(|column| tables.has(&scored.table, &[column])) {
                texts.push((title.to_owned(), scored.table.clone(), column));
            }
        }
    }
    texts
}

/// Words per text; the longest hundredth shares the last bin.
fn lengths(
    tables: &Tables,
    title: &str,
    table: &str,
    column: &str,
) -> Result<Option<Card>, CacheError> {
    const BINS: i64 = 20;
    let words = format!(
        "words as (select len(string_split(trim({0}::varchar), ' '))::bigint as n from texts where {0} is not null)",
        quote(column)
    );
    let query = |select: &str| tables.query(&[("texts", table)], &format!("with {words} {select}"));
    let found = query(
        "select count(*)::bigint, median(n)::double, quantile_disc(n, 0.99)::bigint, max(n)::bigint from words",
    )?;
    let number = |index: usize| found.rows.first().and_then(|row| row[index].as_f64());
    let (Some(texts), Some(median), Some(usual), Some(longest)) =
        (number(0), number(1), number(2), number(3))
    else {
        return Ok(None);
    };
    let width = round_up(usual as i64 / BINS + 1);
    let last = usual as i64 / width;
    let counts = query(&format!(
        "select least(n // {width}, {last})::bigint, count(*)::bigint from words group by 1 order by 1"
    ))?;
    let count_of = |place: i64| {
        let row = counts
            .rows
            .iter()
            .find(|row| row[0].as_i64() == Some(place));
        row.and_then(|row| row[1].as_i64()).unwrap_or_default() as u64
    };
    let bins: Vec<Bin> = (0..=last)
        .map(|place| Bin {
            label: if place == last && longest as i64 >= (last + 1) * width {
                format!("≥ {}", count((place * width) as u64))
            } else {
                count((place * width) as u64)
            },
            count: count_of(place),
        })
        .collect();
    Ok(Some(Card {
        title: title.to_owned(),
        note: format!(
            "words in {} of {}; median {}, longest {}",
            plural(texts as u64, "text"),
            tables.run().short_name(table),
            count(median as u64),
            count(longest as u64)
        ),
        svg: chart::histogram(title, &format!("words, in steps of {width}"), &bins),
    }))
}

/// The next of 1, 2, 5, 10, 20, 50 and so on.
fn round_up(width: i64) -> i64 {
    let mut power = 1;
    loop {
        if let Some(round) = [1, 2, 5]
            .map(|factor| factor * power)
            .into_iter()
            .find(|round| *round >= width)
        {
            return round;
        }
        power *= 10;
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn widths_are_round() {
        assert_eq!(
            [1, 3, 5, 6, 21, 51].map(super::round_up),
            [1, 5, 5, 10, 50, 100]
        );
    }
}
