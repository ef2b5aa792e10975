//! `flow runs`: the runs on record.

use std::cmp::Reverse;

use clap::{Args, ValueEnum};
use serde_json::json;

use super::error::{CliError, Exit};
use super::folders::Folders;
use super::output::Output;
use super::show::state_text;
use crate::config::suggest;
use crate::engine::RunState;
use crate::runs::{self, Head};
use crate::ui::{number, plural, seconds, table};

/// List the runs of the project, the newest first
#[derive(Debug, Args)]
pub struct Arguments {
    /// Show at most so many
    #[arg(long, short = 'n', value_name = "N", default_value_t = 20)]
    limit: usize,

    /// Only runs of this pipeline
    #[arg(long, value_name = "NAME")]
    pipeline: Option<String>,

    /// Only runs with this profile
    #[arg(long, value_name = "NAME")]
    profile: Option<String>,

    /// Only runs that ended so, or are on [may be repeated]
    #[arg(long, value_name = "STATE")]
    state: Vec<State>,

    /// Only runs started on this day (UTC) or later, or within the last `90m`, `12h`, `7d`
    #[arg(long, value_name = "DATE|TIME", value_parser = since)]
    since: Option<String>,

    /// Show this final number too, such as `evaluate.summary.f1_tuned` or `f1_tuned` [may be repeated]
    #[arg(long, value_name = "NAME")]
    metric: Vec<String>,

    /// Sort by `time` (the longest first) or by a final number (the highest first) instead of by start
    #[arg(long, value_name = "time|METRIC")]
    sort: Option<String>,

    /// List the variants of a matrix one by one, as `--metric` and `--sort` do
    #[arg(long)]
    variants: bool,

    /// The other way round
    #[arg(long)]
    reverse: bool,

    /// Print all of them as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum State {
    Running,
    Finished,
    Failed,
    Interrupted,
}

impl State {
    fn is(self, state: RunState) -> bool {
        matches!(
            (self, state),
            (Self::Running, RunState::Running)
                | (Self::Finished, RunState::Finished)
                | (Self::Failed, RunState::Failed)
                | (Self::Interrupted, RunState::Interrupted)
        )
    }
}

pub fn run(arguments: &Arguments, output: &Output) -> Result<Exit, CliError> {
    let folders = Folders::of_working_folder();
    let all = runs::list(&folders.runs)?;
    let recorded = all.len();
    let mut heads: Vec<Head> = all
        .into_iter()
        .filter(|head| is_wanted(head, arguments))
        .collect();
    let metrics = arguments
        .metric
        .iter()
        .map(|name| full_name(&heads, name))
        .collect::<Result<Vec<_>, _>>()?;
    sort(&mut heads, arguments.sort.as_deref())?;
    if arguments.reverse {
        heads.reverse();
    }
    if arguments.json {
        output.print_json(&json!(heads))?;
    } else if recorded == 0 {
        output.tell(&format!(
            "there are no runs in `{}`; `flow run PIPELINE` makes the first",
            folders.runs.display()
        ));
    } else if heads.is_empty() {
        output.tell(&format!("none of {recorded} runs is of this kind"));
    } else {
        let one_by_one = arguments.variants || arguments.sort.is_some() || !metrics.is_empty();
        let lines = together(&heads, one_by_one);
        let rows: Vec<_> = lines
            .iter()
            .take(arguments.limit)
            .map(|heads| match heads {
                [head] if one_by_one || head.variant.is_none() => row(head, &metrics, output),
                variants => group_row(variants, output),
            })
            .collect();
        let mut header = vec!["run", "pipeline", "profile", "state", "time", "nodes"];
        header.extend(arguments.metric.iter().map(String::as_str));
        output.print(&table(&header, &rows, None))?;
        if lines.len() > arguments.limit {
            output.tell(&format!(
                "{} more; `--limit` shows them",
                lines.len() - arguments.limit
            ));
        }
    }
    Ok(Exit::Ok)
}

/// Runs that make a line together: the variants of a matrix, which follow each other.
fn together(heads: &[Head], one_by_one: bool) -> Vec<&[Head]> {
    let group = |head: &Head| head.variant.as_ref().map(|variant| variant.group.clone());
    heads
        .chunk_by(|a, b| !one_by_one && group(a).is_some() && group(a) == group(b))
        .collect()
}

/// All variants of a matrix in one line.
fn group_row(variants: &[Head], output: &Output) -> Vec<String> {
    let first = &variants[0];
    let id = first
        .variant
        .as_ref()
        .map_or(&first.id, |variant| &variant.group);
    let mut states: Vec<(RunState, u64)> = Vec::new();
    for head in variants {
        match states.iter_mut().find(|(state, _)| *state == head.state) {
            Some((_, count)) => *count += 1,
            None => states.push((head.state, 1)),
        }
    }
    let state = match states.as_slice() {
        [(state, _)] => state_text(*state, output.style),
        several => several
            .iter()
            .map(|(state, count)| format!("{count} {}", state_text(*state, output.style)))
            .collect::<Vec<_>>()
            .join(", "),
    };
    let longest = variants
        .iter()
        .filter_map(|head| head.seconds)
        .max_by(f64::total_cmp);
    vec![
        id.clone(),
        first.pipeline.clone(),
        first.profile.clone().unwrap_or_default(),
        state,
        longest.map(seconds).unwrap_or_default(),
        plural(variants.len() as u64, "variant"),
    ]
}

fn is_wanted(head: &Head, arguments: &Arguments) -> bool {
    let is = |wanted: &Option<String>, value: Option<&str>| {
        wanted.as_deref().is_none_or(|wanted| value == Some(wanted))
    };
    is(&arguments.pipeline, Some(&head.pipeline))
        && is(&arguments.profile, head.profile.as_deref())
        && (arguments.state.is_empty() || arguments.state.iter().any(|state| state.is(head.state)))
        // Times in UTC sort as text.
        && arguments.since.as_ref().is_none_or(|since| head.started >= *since)
}

/// The start of the time that is meant, in UTC: `2026-11-24`, or that long ago: `90m`, `12h`, `7d`.
fn since(text: &str) -> Result<String, String> {
    if text.parse::<jiff::civil::Date>().is_ok() {
        return Ok(text.to_owned());
    }
    let seconds = || {
        let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
        let unit = match unit {
            "m" => 60,
            "h" => 3600,
            "d" => 86_400,
            _ => return None,
        };
        digits.parse::<i64>().ok()?.checked_mul(unit)
    };
    let ago = seconds()
        .and_then(|seconds| {
            let span = jiff::SignedDuration::from_secs(seconds);
            jiff::Timestamp::now().checked_sub(span).ok()
        })
        .ok_or("write a day such as `2026-11-24`, or a time such as `90m`, `12h`, `7d`")?;
    Ok(ago.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
}

/// The metric that is meant: its whole name, or the last part where only one has it.
fn full_name(heads: &[Head], name: &str) -> Result<String, CliError> {
    let mut known: Vec<&str> = heads
        .iter()
        .flat_map(|head| head.metrics.keys().map(String::as_str))
        .collect();
    known.sort_unstable();
    known.dedup();
    if known.contains(&name) {
        return Ok(name.to_owned());
    }
    let ending = format!(".{name}");
    let fitting: Vec<&str> = known
        .iter()
        .copied()
        .filter(|metric| metric.ends_with(&ending))
        .collect();
    match fitting.as_slice() {
        [only] => Ok((*only).to_owned()),
        [] => {
            let guess = suggest::closest(name, known.iter().copied())
                .map(|metric| format!("did you mean `{metric}`? "))
                .unwrap_or_default();
            Err(CliError::wrong(
                format!("no run has a final number `{name}`"),
                format!("{guess}there are {}", suggest::list(known)),
            ))
        }
        several => Err(CliError::wrong(
            format!("`{name}` is the end of several names"),
            format!("give one of {}", suggest::list(several.iter().copied())),
        )),
    }
}

/// The highest first; runs without the number last.
fn sort(heads: &mut [Head], by: Option<&str>) -> Result<(), CliError> {
    let by_value = |heads: &mut [Head], value: &dyn Fn(&Head) -> Option<f64>| {
        heads.sort_by(|a, b| {
            let place = |head: &Head| value(head).unwrap_or(f64::NEG_INFINITY);
            place(b).total_cmp(&place(a))
        });
    };
    match by {
        None => heads.sort_by_key(|head| Reverse(head.id.clone())),
        Some("time") => by_value(heads, &|head| head.seconds),
        Some(metric) => {
            let name = full_name(heads, metric)?;
            by_value(heads, &|head| head.metrics.get(&name).copied());
        }
    }
    Ok(())
}

fn row(head: &Head, metrics: &[String], output: &Output) -> Vec<String> {
    let mut cells = vec![
        head.id.clone(),
        head.pipeline.clone(),
        head.profile.clone().unwrap_or_default(),
        state_text(head.state, output.style),
        head.seconds.map(seconds).unwrap_or_default(),
        counts(head),
    ];
    let values = metrics
        .iter()
        .map(|name| head.metrics.get(name).map(|value| number(*value)));
    cells.extend(values.map(Option::unwrap_or_default));
    cells
}

/// `3 ran, 9 cached`.
pub fn counts(head: &Head) -> String {
    let known = ["failed", "skipped", "ran", "cached"]
        .into_iter()
        .filter_map(|name| Some((name, *head.counts.get(name)?)));
    known
        .map(|(name, count)| format!("{count} {name}"))
        .collect::<Vec<_>>()
        .join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_days_or_spans() {
        assert_eq!(since("2026-11-24").unwrap(), "2026-11-24");
        assert!(since("7d").unwrap() < since("12h").unwrap());
        for wrong in ["", "d", "7", "7w", "yesterday"] {
            assert!(since(wrong).is_err(), "{wrong}");
        }
    }
}
