//! One SELECT of a step: where its text comes from, what is wrong with it before a run, and which columns it gives.

use std::collections::BTreeMap;

use duckdb::Connection;
use serde_json::Value;

use super::super::Problem;
use crate::cache::{bind, is_ordered, quote};
use crate::config::Columns;
use crate::graph::{Node, StageFile};

/// The text to run, and how messages call its place.
pub(super) struct Query<'a> {
    pub(super) text: &'a str,
    /// The param it comes from.
    pub(super) param: &'static str,
    file: Option<String>,
    pub(super) params: Vec<(String, Value)>,
}

impl<'a> Query<'a> {
    /// The query that makes the result.
    pub(super) fn of(node: &'a Node) -> Result<Self, Problem> {
        let problem = |at: &str, message: &str| Problem {
            at: at.to_owned(),
            message: message.to_owned(),
            help: Some("give one of `query: \"select …\"` and `file: x.sql`".to_owned()),
        };
        match (
            node.params.get("query").and_then(Value::as_str),
            node.files.get("file"),
        ) {
            (Some(text), None) => Ok(Self {
                text,
                param: "query",
                file: None,
                params: params(node),
            }),
            (None, Some(file)) => Ok(Self::in_file(node, "file", file)),
            (Some(_), Some(_)) => Err(problem(
                "file",
                "an sql step has `query` or `file`, not both",
            )),
            (None, None) => Err(problem("", "an sql step needs a `query`")),
        }
    }

    /// The query of another param that names a file.
    pub(super) fn beside(node: &'a Node, param: &'static str) -> Option<Self> {
        let file = node.files.get(param)?;
        Some(Self::in_file(node, param, file))
    }

    fn in_file(node: &Node, param: &'static str, file: &'a StageFile) -> Self {
        let name = file.path.file_name();
        Self {
            text: &file.text,
            param,
            file: name.map(|name| name.to_string_lossy().into_owned()),
            params: params(node),
        }
    }

    /// How messages call it.
    pub(super) fn name(&self) -> &str {
        self.file.as_deref().unwrap_or("the query")
    }

    /// The columns of the result; `None` where those of an input are not known. `database` stays as it is.
    pub(super) fn check(
        &self,
        database: &Connection,
        inputs: &BTreeMap<String, Option<Columns>>,
    ) -> Result<Option<Columns>, Problem> {
        let failed = |error: duckdb::Error| self.problem(&error.to_string(), 0);
        database.execute_batch("begin").map_err(failed)?;
        let checked = self.prepare(database, inputs);
        database.execute_batch("rollback").map_err(failed)?;
        checked
    }

    /// Prepares the query on empty tables of the inputs, which stay in `database`.
    fn prepare(
        &self,
        database: &Connection,
        inputs: &BTreeMap<String, Option<Columns>>,
    ) -> Result<Option<Columns>, Problem> {
        is_ordered(database, self.text).map_err(|error| self.problem(&error.to_string(), 0))?;
        for (port, columns) in inputs {
            let Some(columns) = columns else {
                return Ok(None);
            };
            let fields: Vec<String> = columns
                .iter()
                .map(|(name, kind)| format!("{} {kind}", quote(name)))
                .collect();
            let known = columns.iter().all(|(_, kind)| !kind.is_empty());
            // A type that only the run knows.
            if !known
                || database
                    .execute_batch(&format!(
                        "create temp table {} ({})",
                        quote(port),
                        fields.join(", ")
                    ))
                    .is_err()
            {
                return Ok(None);
            }
        }
        let failed = |error: duckdb::Error| self.problem(&error.to_string(), 0);
        database
            .prepare(self.text)
            .map_err(|error| self.of_inputs(failed(error), inputs))?;
        let text = self.text.trim().trim_end_matches(';');
        let result = "flow result";
        // As it will be kept, but for the rows.
        let mut statement = database
            .prepare(&format!(
                "create temp table {} as select * from (\n{text}\n) limit 0",
                quote(result)
            ))
            .map_err(failed)?;
        bind(&mut statement, &self.params).map_err(|error| Problem {
            at: "params".to_owned(),
            message: error.to_string(),
            help: Some("add it under `params`, or correct the name".to_owned()),
        })?;
        statement.raw_execute().map_err(failed)?;
        let mut statement = database
            .prepare(&format!(
                "select column_name, column_type from (describe {})",
                quote(result)
            ))
            .map_err(failed)?;
        let columns = statement
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
            .and_then(Iterator::collect);
        columns.map(Some).map_err(failed)
    }

    /// DuckDB's message about this query: it shows the line (counted from `before`) with a caret, or says `(line 2, column 3)`.
    pub(super) fn problem(&self, message: &str, before: usize) -> Problem {
        let (_, message) = message.split_once("Error: ").unwrap_or(("", message));
        let (said, shown) = message.split_once("\n\nLINE ").unwrap_or((message, ""));
        let mut lines = said.lines().map(str::trim).filter(|line| !line.is_empty());
        let headline = lines.next().unwrap_or("the query cannot be run");
        let (headline, mut place) = match headline.rsplit_once(" (line ") {
            Some((headline, place)) if shown.is_empty() => (headline, self.quoted(place)),
            _ => (headline, None),
        };
        if let Some((line, rest)) = shown.split_once(": ") {
            let indent = "LINE : ".len() + line.len();
            let number = line
                .parse::<usize>()
                .unwrap_or(before + 1)
                .saturating_sub(before)
                .max(1);
            let (text, caret) = rest.split_once('\n').unwrap_or((rest, ""));
            let caret = caret
                .lines()
                .next()
                .and_then(|caret| caret.get(indent..))
                .unwrap_or_default();
            place = Some((number, text.to_owned(), caret.to_owned()));
        }
        let name = self.name();
        let headline = headline.trim_end_matches(['!', '.']);
        let message = match place {
            Some((number, text, caret)) => {
                format!("{name}, line {number}: {headline}\n  {text}\n  {caret}")
            }
            None => format!("{name}: {headline}"),
        };
        // A hundred signatures of `+` are no advice.
        let help = lines
            .take_while(|line| !line.starts_with("Candidate functions"))
            .collect::<Vec<_>>()
            .join(" ");
        let help = help.replace("Candidate bindings:", "did you mean");
        Problem {
            at: self.param.to_owned(),
            message,
            help: (!help.is_empty()).then_some(help),
        }
    }

    /// The line of the query that `2, column 3)` names, with its number and a caret below.
    fn quoted(&self, place: &str) -> Option<(usize, String, String)> {
        let (line, column) = place.trim_end_matches(')').split_once(", column ")?;
        let (line, column) = (line.parse::<usize>().ok()?, column.parse::<usize>().ok()?);
        let text = self.text.lines().nth(line.checked_sub(1)?)?;
        Some((
            line,
            text.to_owned(),
            format!("{}^", " ".repeat(column.saturating_sub(1))),
        ))
    }

    /// Adds what the inputs are to a problem that has no advice.
    fn of_inputs(&self, problem: Problem, inputs: &BTreeMap<String, Option<Columns>>) -> Problem {
        let list = |columns: &Columns| {
            columns
                .iter()
                .map(|(name, _)| name.as_str())
                .collect::<Vec<_>>()
                .join(", ")
        };
        let inputs: Vec<String> = inputs
            .iter()
            .filter_map(|(port, columns)| Some(format!("`{port}` ({})", list(columns.as_ref()?))))
            .collect();
        let known = (!inputs.is_empty()).then(|| format!("the inputs are {}", inputs.join(", ")));
        Problem {
            help: problem.help.or(known),
            ..problem
        }
    }
}

/// The values of the param `params`.
fn params(node: &Node) -> Vec<(String, Value)> {
    let params = node.params.get("params").and_then(Value::as_object);
    let pair = |(name, value): (&String, &Value)| (name.clone(), value.clone());
    params.into_iter().flatten().map(pair).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::super::checker;
    use super::*;

    fn check(
        text: &str,
        params: Value,
        inputs: &[(&str, &[(&str, &str)])],
    ) -> Result<Option<Columns>, Problem> {
        let params = params
            .as_object()
            .unwrap()
            .iter()
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        let query = Query {
            text,
            param: "query",
            file: None,
            params,
        };
        let own = |columns: &[(&str, &str)]| {
            columns
                .iter()
                .map(|(name, kind)| ((*name).to_owned(), (*kind).to_owned()))
                .collect()
        };
        let inputs = inputs
            .iter()
            .map(|(port, columns)| {
                (
                    (*port).to_owned(),
                    (!columns.is_empty()).then(|| own(columns)),
                )
            })
            .collect();
        checker::with(|database| query.check(database, &inputs)).unwrap()
    }

    const ROWS: (&str, &[(&str, &str)]) = (
        "rows",
        &[
            ("id", "VARCHAR"),
            ("question", "VARCHAR"),
            ("score", "DOUBLE"),
        ],
    );

    fn message(text: &str) -> String {
        let problem = check(text, json!({}), &[ROWS]).unwrap_err();
        format!(
            "{}\n= {}",
            problem.message,
            problem.help.unwrap_or_default()
        )
    }

    #[test]
    fn columns_follow_from_inputs_and_params() {
        let columns = check(
            "with kept as (select * from rows where score >= $least) -- a comment\nselect id, count(*) as n, max(score) from kept group by id order by n;",
            json!({"least": 0.5, "unused": [1]}),
            &[ROWS],
        );
        let columns = columns.unwrap().unwrap();
        let shown: Vec<String> = columns
            .iter()
            .map(|(name, kind)| format!("{name} {kind}"))
            .collect();
        assert_eq!(shown, ["id VARCHAR", "n BIGINT", "max(score) DOUBLE"]);
        let listed = check(
            "select * from rows where question in (select unnest($wanted::varchar[]))",
            json!({"wanted": ["a"]}),
            &[ROWS],
        );
        assert_eq!(listed.unwrap().unwrap().len(), 3);
        assert_eq!(
            check("select * from rows", json!({}), &[("rows", &[])]).unwrap(),
            None
        );
    }

    #[test]
    fn mistakes_show_the_line_and_what_is_there() {
        insta::assert_snapshot!(message("select id,\n  qestion\nfrom rows"), @r#"
        the query, line 2: Referenced column "qestion" not found in FROM clause
            qestion
            ^
        = did you mean "question"
        "#);
        insta::assert_snapshot!(message("select id from row"), @r#"
        the query, line 1: Table with name row does not exist
          select id from row
                         ^
        = Did you mean "rows"?
        "#);
        insta::assert_snapshot!(message("select id form rows"), @r#"
        the query, line 1: syntax error at or near "rows"
          select id form rows
                         ^
        =
        "#);
        insta::assert_snapshot!(message("select id from rows; select 1"), @r"
        the query: a query is one SELECT; there are 2 statements
        =
        ");
        insta::assert_snapshot!(message("drop table rows"), @r"
        the query: a query is one SELECT; this is another statement
        =
        ");
        insta::assert_snapshot!(message("select score + question::date from rows"), @r"
        the query, line 1: No function matches the given name and argument types '+(DOUBLE, DATE)'. You might need to add explicit type casts
          select score + question::date from rows
                       ^
        = the inputs are `rows` (id, question, score)
        ");
        insta::assert_snapshot!(message("select * from rows where score > $least"), @r"
        the query uses `$least`, which is not a param; there are none
        = add it under `params`, or correct the name
        ");
        insta::assert_snapshot!(message("select id, sum(score) from rows"), @r#"
        the query, line 1: column "id" must appear in the GROUP BY clause or must be part of an aggregate function
          select id, sum(score) from rows
                 ^
        = Either add it to the GROUP BY list, or use "ANY_VALUE(id)" if the exact value of "id" is not important.
        "#);
        // With an input that is not known, the syntax is still checked.
        let problem = check("selct 1", json!({}), &[("rows", &[])]).unwrap_err();
        insta::assert_snapshot!(problem.message, @r#"
        the query, line 1: syntax error at or near "selct"
          selct 1
          ^
        "#);
    }
}
