//! `flow metrics`: the curves of a run.

use clap::Args;
use serde_json::json;

use super::error::{CliError, Exit};
use super::folders::Folders;
use super::output::Output;
use super::record;
use crate::config::suggest;
use crate::runs::{Curve, curves};
use crate::ui::{count, number, plot, sparkline, table};

/// Show what nodes of a run reported step by step, such as the training loss
#[derive(Debug, Args)]
pub struct Arguments {
    /// An id, the beginning of one, `latest`, or `latest~1` for the one before
    #[arg(value_name = "RUN", default_value = "latest")]
    run: String,

    /// Plot this curve, such as `train/loss`; `loss` plots all whose last part is that
    #[arg(value_name = "METRIC")]
    metric: Option<String>,

    /// Print every point as JSON
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &Arguments, output: &Output) -> Result<Exit, CliError> {
    let folders = Folders::of_working_folder();
    let run = record::read(&folders, &arguments.run)?;
    let mut found = curves(&folders.runs, &run)?;
    if let Some(wanted) = &arguments.metric {
        let names: Vec<String> = found.keys().map(|(_, metric)| metric.clone()).collect();
        found.retain(|(_, metric), _| {
            metric == wanted || metric.rsplit('/').next() == Some(wanted.as_str())
        });
        if found.is_empty() && !names.is_empty() {
            let names = || names.iter().map(String::as_str);
            let guess = suggest::closest(wanted, names())
                .map(|name| format!("did you mean `{name}`? "))
                .unwrap_or_default();
            return Err(CliError::wrong(
                format!("the run {} has no curve `{wanted}`", run.id()),
                format!("{guess}there are {}", suggest::list(names())),
            ));
        }
    }
    if arguments.json {
        let curve = |((node, metric), points): (&(String, String), &Curve)| json!({ "node": node, "metric": metric, "points": points });
        let all: Vec<_> = found.iter().map(curve).collect();
        output.print_json(&json!(all))?;
    } else if found.is_empty() {
        output.tell(&format!("no node of the run {} reported a curve", run.id()));
    } else if arguments.metric.is_some() {
        let width = output
            .width
            .map_or(72, |width| usize::from(width).min(120) - 14);
        for ((node, metric), curve) in &found {
            let points: Vec<_> = curve
                .iter()
                .map(|(step, value)| (*step as f64, *value))
                .collect();
            output.print(&format!(
                "{} {} by step\n{}{}\n\n",
                output.style.bold(metric),
                output.style.dim(&format!("of {node}")),
                plot(&points, width, 12),
                extremes(curve)
            ))?;
        }
    } else {
        let rows: Vec<_> = found.iter().map(row).collect();
        output.print(&table(
            &[
                "metric", "node", "steps", "first", "last", "lowest", "highest", "curve",
            ],
            &rows,
            None,
        ))?;
    }
    Ok(Exit::Ok)
}

fn row(((node, metric), curve): (&(String, String), &Curve)) -> Vec<String> {
    let values: Vec<f64> = curve.iter().map(|(_, value)| *value).collect();
    let finite = || values.iter().copied().filter(|value| value.is_finite());
    let shown = |value: Option<f64>| value.map(number).unwrap_or_default();
    vec![
        metric.clone(),
        node.clone(),
        count(values.len() as u64),
        shown(finite().next()),
        shown(finite().next_back()),
        shown(finite().reduce(f64::min)),
        shown(finite().reduce(f64::max)),
        sparkline(&values, 24),
    ]
}

/// `lowest 1.93 at step 88, last 1.95 at step 94`.
fn extremes(curve: &Curve) -> String {
    let finite = || curve.iter().filter(|(_, value)| value.is_finite());
    let point = |name: &str, point: Option<&(u64, f64)>| {
        point.map(|(step, value)| format!("{name} {} at step {}", number(*value), count(*step)))
    };
    let by_value = |a: &&(u64, f64), b: &&(u64, f64)| a.1.total_cmp(&b.1);
    [
        point("lowest", finite().min_by(by_value)),
        point("highest", finite().max_by(by_value)),
        point("last", finite().next_back()),
    ]
    .into_iter()
    .flatten()
    .collect::<Vec<_>>()
    .join(", ")
}
