//! Judging with a model of ours: the allowed answers are scored by log-probability, nothing is parsed.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::prompt::{PromptTemplate, Rendered};
use super::{Done, Job, Params, TRUNCATED};
use crate::cache::Verdict;
use crate::lm::{Chooser, LanguageModel, Message};
use crate::ops::loaded::with_model;
use crate::ops::{Context, OpError};

/// Verdicts become durable at least this often, so little is judged again after a crash.
const COMMIT_EVERY: Duration = Duration::from_secs(2);

pub(super) fn judge(
    context: &Context,
    params: &Params,
    template: &PromptTemplate,
    jobs: &[Job],
    done: &mut Done<'_>,
) -> Result<(), OpError> {
    with_model(context, "model", &params.quant, &params.dtype, |model| {
        let limit = params.max_length.min(model.config.context as usize);
        let prefix = shared_prefix(model, template, &jobs[0].prompt)?;
        let (chooser, alone) = (Chooser::new(model, &prefix)?, Chooser::new(model, "")?);
        let mut batch = Vec::new();
        let mut committed = Instant::now();
        for (index, job) in jobs.iter().enumerate() {
            context.check_cancelled()?;
            let (text, truncated) = fit(model, params, template, job, limit)?;
            let choices: Vec<String> = job.prompt.choices.iter().map(i64::to_string).collect();
            let choice = match text.strip_prefix(&prefix) {
                Some(rest) => chooser.choose(rest, &choices)?,
                None => alone.choose(&text, &choices)?,
            };
            let detail = if truncated {
                TRUNCATED.to_owned()
            } else {
                String::new()
            };
            let verdict = Verdict {
                choice: job.prompt.choices[choice.index],
                probability: choice.probability,
                detail,
            };
            batch.push((index, verdict));
            if committed.elapsed() >= COMMIT_EVERY || index + 1 == jobs.len() {
                done(&batch)?;
                batch.clear();
                committed = Instant::now();
            }
        }
        Ok(())
    })
}

fn messages(prompt: &Rendered) -> Vec<Message> {
    let system = prompt.system.iter().map(Message::system);
    system.chain([Message::user(&prompt.user)]).collect()
}

/// The text that every prompt of this template starts with: what two rows without a letter in common share.
///
/// It depends on the template alone, so a verdict does not depend on which other rows are judged beside it.
fn shared_prefix(
    model: &LanguageModel,
    template: &PromptTemplate,
    sample: &Rendered,
) -> Result<String, OpError> {
    let render = |filler: &str| -> Result<String, OpError> {
        let rendered = template
            .render(&filled(&sample.row, filler))
            .map_err(OpError::new)?;
        Ok(model.render(&messages(&rendered), true)?)
    };
    let (a, b) = (render("\u{1}")?, render("\u{2}")?);
    let same = a
        .char_indices()
        .zip(b.chars())
        .take_while(|((_, a), b)| a == b)
        .map(|((at, a), _)| at + a.len_utf8())
        .last();
    Ok(a[..same.unwrap_or(0)].to_owned())
}

fn filled(row: &Value, filler: &str) -> Value {
    match row {
        Value::String(_) => Value::String(filler.to_owned()),
        Value::Array(items) => {
            Value::Array(items.iter().map(|item| filled(item, filler)).collect())
        }
        Value::Object(fields) => Value::Object(
            fields
                .iter()
                .map(|(name, value)| (name.clone(), filled(value, filler)))
                .collect(),
        ),
        other => other.clone(),
    }
}

/// The prompt's text; where it has more than `limit` tokens, the column `truncate` is cut until it fits.
fn fit(
    model: &LanguageModel,
    params: &Params,
    template: &PromptTemplate,
    job: &Job,
    limit: usize,
) -> Result<(String, bool), OpError> {
    let render = |prompt: &Rendered| -> Result<(String, usize), OpError> {
        let text = model.render(&messages(prompt), true)?;
        let tokens = model.tokenizer.encode(&text)?.len();
        Ok((text, tokens))
    };
    // The answer itself needs a few tokens behind the prompt.
    let limit = limit.saturating_sub(8);
    let (text, tokens) = render(&job.prompt)?;
    if tokens <= limit {
        return Ok((text, false));
    }
    let too_long = || {
        OpError::with_help(
            format!(
                "the prompt of row `{}` has {tokens} tokens, {limit} fit",
                job.id
            ),
            "name the column to cut in `truncate`, or raise `max_length`",
        )
    };
    let column = params.truncate.as_deref().ok_or_else(too_long)?;
    // Bisection over the share that is kept: prompts grow with their texts.
    let (mut low, mut high, mut best) = (0.0, 1.0, None);
    for _ in 0..12 {
        let keep = (low + high) / 2.0;
        let shorter = template
            .render(&job.prompt.shortened(column, keep))
            .map_err(OpError::new)?;
        let (text, tokens) = render(&shorter)?;
        if tokens <= limit {
            (low, best) = (keep, Some(text));
        } else {
            high = keep;
        }
    }
    best.map(|text| (text, true)).ok_or_else(too_long)
}
