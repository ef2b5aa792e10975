//! From `raw` to `rows`: columns named, an `id` for every row, blank rows dropped, a sample drawn.

use std::path::Path;

use duckdb::Connection;

use super::params::{Limit, Params, Whitespace};
use super::sample;
use crate::cache::quote;
use crate::config::{Columns, display, suggest};
use crate::ops::{OpError, Problem};

/// The table or view that [`Shape::make`] makes.
pub(super) const ROWS: &str = "rows";

/// Names that the work needs beside the data's own.
const BASE: &str = "flow base id";
const REPEAT: &str = "flow repeat";

/// What the params mean for columns that are known.
pub(super) struct Shape<'a> {
    params: &'a Params,
    /// Name, type and the expression over `raw` that gives it.
    columns: Vec<(String, String, String)>,
    /// The column that identifies a row.
    id: Option<String>,
    require: Vec<String>,
}

/// What happened to the rows.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Report {
    pub read: u64,
    pub rows: u64,
    /// By column: rows dropped because it is blank, and the first ids.
    pub blank: Vec<(String, u64, Vec<String>)>,
    /// Rows whose id another row has too.
    pub repeated_ids: u64,
    /// Rows left out by `limit`.
    pub left_out: u64,
    pub facts: Vec<(&'static str, u64)>,
}

impl<'a> Shape<'a> {
    pub(super) fn new(params: &'a Params, raw: &Columns) -> Result<Self, Vec<Problem>> {
        let mut problems = Vec::new();
        for (new, old) in &params.columns {
            let at = format!("columns.{new}");
            if !has(raw, old) {
                problems.push(no_column(
                    &at,
                    old,
                    raw.iter().map(|column| column.0.as_str()),
                ));
            } else if !new.eq_ignore_ascii_case(old)
                && has(raw, new)
                && !params
                    .columns
                    .values()
                    .any(|moved| moved.eq_ignore_ascii_case(new))
            {
                let message =
                    format!("`{old}` cannot become `{new}`: the data has a column of that name");
                problems.push(Problem {
                    at,
                    message,
                    help: Some(format!(
                        "give `{new}` another name too: `columns: {{ other: {new} }}`"
                    )),
                });
            }
        }
        let name = |old: &String| {
            params
                .columns
                .iter()
                .find(|(_, renamed)| renamed.eq_ignore_ascii_case(old))
                .map_or(old, |(new, _)| new)
                .clone()
        };
        let named: Columns = raw
            .iter()
            .map(|(old, kind)| (name(old), kind.clone()))
            .collect();
        let names = || named.iter().map(|column| column.0.as_str());
        let groups = [
            ("limit_by", &params.limit_by),
            ("keep_together", &params.keep_together),
        ];
        let listed = groups
            .into_iter()
            .chain(params.require.iter().map(|columns| ("require", columns)));
        for (param, columns) in listed {
            for (index, column) in columns
                .iter()
                .enumerate()
                .filter(|(_, column)| !has(&named, column))
            {
                problems.push(no_column(&format!("{param}.{index}"), column, names()));
            }
        }
        if let Some(id) = params.id.as_ref().filter(|id| !has(&named, id)) {
            problems.push(no_column("id", id, names()));
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let id = params
            .id
            .clone()
            .or_else(|| has(&named, "id").then(|| "id".to_owned()));
        let expression = |old: &str, kind: &str| {
            if kind == "VARCHAR" {
                params.whitespace.expression(&quote(old))
            } else {
                quote(old)
            }
        };
        let columns = raw
            .iter()
            .zip(&named)
            .map(|((old, kind), (new, _))| (new.clone(), kind.clone(), expression(old, kind)));
        let usual = ["question", "answer"]
            .into_iter()
            .filter(|name| has(&named, name))
            .map(str::to_owned)
            .collect();
        Ok(Self {
            params,
            columns: columns.collect(),
            id,
            require: params.require.clone().unwrap_or(usual),
        })
    }

    /// The columns of the result.
    pub(super) fn columns(&self) -> Columns {
        let others = self
            .others()
            .map(|(name, kind, _)| (name.clone(), kind.clone()));
        std::iter::once(("id".to_owned(), "VARCHAR".to_owned()))
            .chain(others)
            .collect()
    }

    fn others(&self) -> impl Iterator<Item = &(String, String, String)> {
        self.columns
            .iter()
            .filter(|column| !column.0.eq_ignore_ascii_case("id"))
    }

    /// Makes [`ROWS`] out of `raw`; `path` is for messages.
    pub(super) fn make(
        &self,
        connection: &Connection,
        path: &Path,
        seed: u64,
    ) -> Result<Report, OpError> {
        self.number(connection)
            .map_err(|error| super::readers::failure(path, &error))?;
        let count = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, u64>(0));
        let mut report = Report {
            read: count("select count(*) from numbered")?,
            ..Report::default()
        };
        let (ids, repeated) = (
            "select count(distinct id) from numbered",
            format!("select count(*) from numbered where {} > 1", quote(REPEAT)),
        );
        report.repeated_ids = count(&repeated)?;
        if report.repeated_ids > 0 && count(ids)? != report.read {
            let message = format!(
                "`{}` has ids such as `a` and `a#2` that cannot be told from numbered ones",
                display(path)
            );
            return Err(OpError::with_help(message, "name another column as `id`"));
        }
        report.blank = self.blank(connection)?;
        let filled: Vec<String> = self
            .require
            .iter()
            .map(|column| format!("not {}", is_blank(column)))
            .collect();
        let filled = if filled.is_empty() {
            "true".to_owned()
        } else {
            filled.join(" and ")
        };
        connection.execute_batch(&format!(
            "create view kept as select * from numbered where {filled}"
        ))?;
        // All rows lie in a table already; a second copy of them would only cost.
        let (made, drawn) = match self.params.limit {
            Limit::All => ("view", "true".to_owned()),
            Limit::Rows(limit) => (
                "table",
                sample::draw(
                    connection,
                    limit,
                    &self.params.limit_by,
                    &self.params.keep_together,
                    seed,
                )?,
            ),
        };
        let names: Vec<String> = self.columns().iter().map(|(name, _)| quote(name)).collect();
        connection.execute_batch(&format!(
            "create {made} {ROWS} as select {} from kept where {drawn}",
            names.join(", ")
        ))?;
        report.rows = count(&format!("select count(*) from {ROWS}"))?;
        report.left_out =
            report.read - report.rows - report.blank.iter().map(|(_, count, _)| count).sum::<u64>();
        if report.read == 0 {
            return Err(OpError::with_help(
                format!("`{}` has no rows", display(path)),
                "give data with rows",
            ));
        }
        if report.rows == 0 {
            let blank: Vec<String> = report
                .blank
                .iter()
                .map(|(column, count, _)| format!("; {count} without `{column}`"))
                .collect();
            return Err(OpError::with_help(
                format!(
                    "no rows are left of {} in `{}`{}",
                    report.read,
                    display(path),
                    blank.concat()
                ),
                "fill them in, or change `require` or `limit`",
            ));
        }
        report.facts = self.facts(connection)?;
        Ok(report)
    }

    /// `numbered`: the columns and a unique `id`. Rows of the same id are numbered by their content, so that neither
    /// threads nor other rows decide which is which.
    ///
    /// Only rows that share their id are sorted; all others are read and written once.
    fn number(&self, connection: &Connection) -> duckdb::Result<()> {
        let fields: Vec<String> = self
            .columns
            .iter()
            .map(|(name, _, expression)| format!("{expression} as {}", quote(name)))
            .collect();
        // A missing value and an empty one differ, and no text can run over into the next.
        let parts: Vec<String> = self
            .columns
            .iter()
            .map(|(name, ..)| format!("coalesce(md5({}::varchar), '-')", quote(name)))
            .collect();
        let hash = format!("md5(concat({}))", parts.join(", "));
        let base = match &self.id {
            Some(id) => format!(
                "coalesce(nullif(trim({}::varchar), ''), left({hash}, 16))",
                quote(id)
            ),
            None => format!("left({hash}, 16)"),
        };
        let (base_name, repeat) = (quote(BASE), quote(REPEAT));
        let others: String = self
            .others()
            .map(|(name, ..)| format!(", {}", quote(name)))
            .collect();
        // By hash first, which keeps the ids themselves out of memory; rows of different ids part in the window.
        connection.execute_batch(&format!(
            "create table based as select *, {base} as {base_name} from (select {} from raw);
            create table suspects as select hash({base_name}) as hashed from based group by hashed having count(*) > 1;
            create table repeats as
            select {base_name}, row_number() over (partition by {base_name} order by {hash}) as {repeat}{others}
            from based semi join suspects on hash({base_name}) = hashed;
            create view numbered as
            select {base_name} as id, 1 as {repeat}{others}
            from based anti join suspects on hash({base_name}) = hashed
            union all
            select {base_name} || case when {repeat} > 1 then '#' || {repeat} else '' end, {repeat}{others} from repeats",
            fields.join(", "),
        ))
    }

    fn blank(&self, connection: &Connection) -> duckdb::Result<Vec<(String, u64, Vec<String>)>> {
        let mut found = Vec::new();
        for (index, column) in self.require.iter().enumerate() {
            let before: String = self.require[..index]
                .iter()
                .map(|column| format!(" and not {}", is_blank(column)))
                .collect();
            let condition = format!("{}{before}", is_blank(column));
            let blank = format!("from numbered where {condition}");
            let count: u64 =
                connection.query_row(&format!("select count(*) {blank}"), [], |row| row.get(0))?;
            if count > 0 {
                let first = format!("select id {blank} order by id limit 3");
                let mut statement = connection.prepare(&first)?;
                let first = statement.query_map([], |row| row.get(0))?;
                found.push((column.clone(), count, first.collect::<Result<_, _>>()?));
            }
        }
        Ok(found)
    }

    /// Counts that tell datasets of questions and answers apart.
    fn facts(&self, connection: &Connection) -> duckdb::Result<Vec<(&'static str, u64)>> {
        let count = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, u64>(0));
        let mut facts = Vec::new();
        let columns = self.columns();
        let has = |name: &str| has(&columns, name);
        if has("question") && has("answer") {
            facts.push((
                "questions",
                count("select count(*) from (select question from rows group by question)")?,
            ));
            // Only answers to what is asked twice can differ or be the same; all others need not be held.
            connection.execute_batch(
                "create temp table asked_again as
                with suspects as (select hash(question) as hashed from rows group by hashed having count(*) > 1)
                select question, answer from rows semi join suspects on hash(question) = hashed",
            )?;
            facts.push((
                "conflicting_questions",
                count("select count(*) from (select question from asked_again group by question having count(distinct answer) > 1)")?,
            ));
            facts.push((
                "exact_duplicates",
                count("select count(*) - count(distinct (question, answer)) from asked_again")?,
            ));
        }
        if has("question_type") {
            facts.push((
                "question_types",
                count("select count(distinct question_type) from rows")?,
            ));
        }
        Ok(facts)
    }
}

impl Report {
    /// What to say, a line each.
    pub(super) fn lines(&self) -> Vec<String> {
        let rows = |count: u64| {
            if count == 1 {
                "1 row".to_owned()
            } else {
                format!("{count} rows")
            }
        };
        let mut lines = vec![format!("{} of {} read", rows(self.rows), self.read)];
        for (column, count, first) in &self.blank {
            let more = if *count > first.len() as u64 {
                " …"
            } else {
                ""
            };
            lines.push(format!(
                "{} without `{column}` dropped: {}{more}",
                rows(*count),
                first.join(", ")
            ));
        }
        if self.left_out > 0 {
            lines.push(format!("{} left out by `limit`", rows(self.left_out)));
        }
        if self.repeated_ids > 0 {
            lines.push(format!(
                "{} with the id of another; it ends in `#2` and so on",
                rows(self.repeated_ids)
            ));
        }
        if !self.facts.is_empty() {
            let facts: Vec<String> = self
                .facts
                .iter()
                .map(|(name, count)| format!("{} {count}", name.replace('_', " ")))
                .collect();
            lines.push(facts.join(", "));
        }
        lines
    }

    pub(super) fn metrics(&self) -> Vec<(String, u64)> {
        let mut metrics = vec![
            ("rows".to_owned(), self.rows),
            ("rows_read".to_owned(), self.read),
            ("rows_left_out".to_owned(), self.left_out),
        ];
        metrics.extend(
            self.blank
                .iter()
                .map(|(column, count, _)| (format!("rows_without_{column}"), *count)),
        );
        metrics.extend(
            self.facts
                .iter()
                .map(|(name, count)| ((*name).to_owned(), *count)),
        );
        metrics
    }
}

impl Whitespace {
    fn expression(self, column: &str) -> String {
        // Few texts begin or end in a blank, and `trim` looks at every character of those it is given.
        let blanks = ["' '", "E'\\t'", "E'\\n'", "E'\\r'", "'\u{a0}'"];
        let at_an_end: Vec<String> = blanks
            .iter()
            .map(|blank| format!("starts_with({column}, {blank}) or ends_with({column}, {blank})"))
            .collect();
        let trimmed = format!(
            "case when {} then trim({column}, E' \\t\\n\\r\u{a0}') else {column} end",
            at_an_end.join(" or ")
        );
        match self {
            Self::Keep => column.to_owned(),
            Self::Trim => trimmed,
            Self::Collapse => format!(
                "regexp_replace(regexp_replace({trimmed}, '[ \\t\\r]*\\n\\s*', E'\\n', 'g'), '[ \\t\\r]+', ' ', 'g')"
            ),
        }
    }
}

/// As DuckDB compares names.
fn has(columns: &Columns, name: &str) -> bool {
    columns
        .iter()
        .any(|column| column.0.eq_ignore_ascii_case(name))
}

/// Whether a value is missing or only blanks; the search ends at the first other character.
fn is_blank(column: &str) -> String {
    format!(
        "coalesce(not regexp_matches({}::varchar, '[^ \\t\\n\\r]'), true)",
        quote(column)
    )
}

fn no_column<'a>(at: &str, name: &str, known: impl Iterator<Item = &'a str> + Clone) -> Problem {
    let guess =
        suggest::closest(name, known.clone()).map(|known| format!("did you mean `{known}`? "));
    Problem {
        at: at.to_owned(),
        message: format!("the data has no column `{name}`"),
        help: Some(format!(
            "{}the columns are {}",
            guess.unwrap_or_default(),
            suggest::list(known)
        )),
    }
}

#[cfg(test)]
mod tests;
