//! `flow trace`: where one row went.

use clap::Args;
use serde_json::{Value, json};

use super::compare::{cut, or_nothing};
use super::error::{CliError, Exit};
use super::folders::Folders;
use super::output::Output;
use super::record;
use crate::cache::Cache;
use crate::config::suggest;
use crate::insight::Tables;
use crate::insight::trace::{
    Happening, Step, Trace, find_by_question, score_text, some_ids, trace,
};
use crate::ui::{Style, number};

/// Questions named where one has to be chosen.
const MOST_QUESTIONS: usize = 10;
/// How many characters of a text are shown; `--json` has all of it.
const SHOWN_TEXT: usize = 160;

/// Follow one row through a run: its group, the judge's choice, kept or dropped and why, its answers and scores
#[derive(Debug, Args)]
pub struct Arguments {
    /// An id, the beginning of one, `latest`, or `latest~1` for the one before
    #[arg(value_name = "RUN")]
    run: String,

    /// The row's id
    #[arg(
        value_name = "ROW_ID",
        required_unless_present = "question",
        conflicts_with = "question"
    )]
    id: Option<String>,

    /// All rows that ask this, or the one question that has it in it
    #[arg(long, value_name = "TEXT")]
    question: Option<String>,

    /// Print everything as JSON
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &Arguments, output: &Output) -> Result<Exit, CliError> {
    let run = record::read(&Folders::of_working_folder(), &arguments.run)?;
    let cache = Cache::open_read_only(&run.view.head.cache)?;
    let tables = Tables::new(&run, &cache)?;
    let ids = match (&arguments.id, &arguments.question) {
        (Some(id), _) => vec![id.clone()],
        (None, question) => ids_of(&tables, question.as_deref().unwrap_or_default())?,
    };
    let mut traces = Vec::with_capacity(ids.len());
    for id in &ids {
        let found = trace(&tables, id)?;
        traces.push(found.ok_or_else(|| unknown(&tables, id))?);
    }
    if !arguments.json {
        let texts = traces.iter().map(|trace| as_text(trace, output.style));
        let text = texts.collect::<Vec<_>>().join("\n");
        output.print_cut(&text, "`--json` shows it whole")?;
    } else if let ([only], Some(_)) = (traces.as_slice(), &arguments.id) {
        output.print_json(&json!(only))?;
    } else {
        output.print_json(&json!(traces))?;
    }
    Ok(Exit::Ok)
}

fn unknown(tables: &Tables, id: &str) -> CliError {
    let run = tables.run().id();
    match some_ids(tables) {
        Ok(ids) if !ids.is_empty() => CliError::wrong(
            format!("the run {run} has no row `{id}`"),
            format!(
                "its ids look like {}; `--question` finds rows by their text",
                suggest::list(ids.iter().map(String::as_str))
            ),
        ),
        Ok(_) => CliError::wrong(
            format!("the run {run} has no tables with ids in the cache"),
            "run the pipeline again: what `flow cache gc` dropped is made anew",
        ),
        Err(error) => error.into(),
    }
}

/// Ids of the rows of one question.
fn ids_of(tables: &Tables, question: &str) -> Result<Vec<String>, CliError> {
    let found = find_by_question(tables, question)?;
    let mut questions: Vec<&str> = found.iter().map(|row| row.question.as_str()).collect();
    questions.dedup();
    match questions.as_slice() {
        [] => Err(CliError::wrong(
            format!(
                "no question of the run {} has `{question}` in it",
                tables.run().id()
            ),
            "try fewer words, or find the row with `flow data RUN --sql`",
        )),
        [_] => Ok(found.into_iter().map(|row| row.id).collect()),
        several => {
            let shown = several
                .iter()
                .take(MOST_QUESTIONS)
                .map(|question| format!("\n    {question}"));
            let more = several.len().saturating_sub(MOST_QUESTIONS);
            let more = if more > 0 {
                format!("\n    and {more} more")
            } else {
                String::new()
            };
            Err(CliError::wrong(
                format!("{} questions have `{question}` in them", several.len()),
                format!("give one of them whole:{}{more}", shown.collect::<String>()),
            ))
        }
    }
}

fn as_text(trace: &Trace, style: Style) -> String {
    let shown = |column: &str| trace.row.get(column).and_then(Value::as_str);
    let mut text = format!("row {} of the run {}\n", style.bold(&trace.id), trace.run);
    if let Some(question) = shown("question") {
        text.push_str(&format!("{}\n", cut(question, SHOWN_TEXT)));
    }
    text.push('\n');
    let width = trace
        .steps
        .iter()
        .map(|step| step.output.chars().count())
        .max()
        .unwrap_or_default();
    for step in &trace.steps {
        for (index, line) in lines(trace, step, style).into_iter().enumerate() {
            let name = if index == 0 { step.output.as_str() } else { "" };
            text.push_str(&format!("{name:<width$}  {line}\n"));
        }
    }
    text.push_str(&format!("\n{}\n", style.bold(&trace.fate)));
    text
}

fn lines(trace: &Trace, step: &Step, style: Style) -> Vec<String> {
    match &step.event {
        Happening::Source => {
            let mut lines = Vec::new();
            let place = ["file", "source", "url"]
                .iter()
                .filter_map(|column| trace.row.get(*column)?.as_str())
                .collect::<Vec<_>>();
            lines.push(if place.is_empty() {
                "came in".to_owned()
            } else {
                format!("came in from {}", place.join(", "))
            });
            let known = ["id", "question", "answer", "file", "source", "url"];
            let others = trace
                .row
                .iter()
                .filter(|(name, value)| !known.contains(&name.as_str()) && !value.is_null());
            let others: Vec<String> = others
                .map(|(name, value)| {
                    let value = value
                        .as_str()
                        .map_or_else(|| value.to_string(), str::to_owned);
                    format!("{name}: {}", cut(&value, 60))
                })
                .collect();
            if !others.is_empty() {
                lines.push(others.join(", "));
            }
            if let Some(answer) = trace.row.get("answer").and_then(Value::as_str) {
                lines.push(format!("answer: {}", cut(answer, SHOWN_TEXT)));
            }
            lines
        }
        Happening::Group { members, .. } => {
            let others = members.iter().filter(|member| !member.is_this).count();
            let mut lines = vec![format!(
                "competed with {others} other answer{} to its question",
                if others == 1 { "" } else { "s" }
            )];
            lines.extend(members.iter().map(|member| {
                let mark = if member.is_this { "→" } else { " " };
                let line = format!(
                    "{mark} {}  {}  {}",
                    member.number,
                    member.id,
                    cut(&member.answer, 90)
                );
                if member.is_this {
                    style.cyan(&line)
                } else {
                    line
                }
            }));
            lines
        }
        Happening::Verdict {
            choice,
            probability,
            truncated,
            meaning,
        } => {
            let cut = if *truncated {
                "; its prompt was cut to fit"
            } else {
                ""
            };
            vec![format!(
                "the judge chose {choice} with probability {}: {meaning}{cut}",
                number(*probability)
            )]
        }
        Happening::Kept => vec![style.green("kept")],
        Happening::Drawn { part } => vec![style.green(&format!("drawn into the {part} rows"))],
        Happening::Dropped { why } => vec![format!("{}: {why}", style.red("dropped"))],
        Happening::PassedBy { why } => vec![style.dim(&format!("not concerned: {why}"))],
        Happening::Scored {
            reference,
            answers,
            scores,
        } => {
            let mut lines = vec![scores.iter().map(score_text).collect::<Vec<_>>().join(", ")];
            if !reference.is_empty() {
                lines.push(format!("reference: {}", cut(reference, SHOWN_TEXT)));
            }
            lines.extend(answers.iter().map(|answer| {
                format!("{}: {}", answer.name, or_nothing(&answer.text, SHOWN_TEXT))
            }));
            lines
        }
    }
}
