//! Judging with a model of ours: the allowed answers are scored by log-probability, nothing is parsed.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::prompt::{PromptTemplate, Rendered};
use super::{Job, Params, TRUNCATED};
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
    done: &mut dyn FnMut(&[(usize, Verdict)]) -> Result<(), OpError>,
) -> Result<(), OpError> {
    with_model(context, "model", &params.quant, &params.dtype, |model| {
        let limit = params.max_length.min(model.config.context as usize);
        let prefix = shared_prefix(model, template, &jobs[0].prompt)?;
        let chooser = Chooser::new(model, &prefix)?;
        let mut batch = Vec::new();
        let mut committed = Instant::now();
        for (index, job) in jobs.iter().enumerate() {
            context.check_cancelled()?;
            let (ids, truncated) = fit(model, params, template, job, limit)?;
            let choices: Vec<String> = job.prompt.choices.iter().map(i64::to_string).collect();
            let choice = chooser.choose(&ids, &choices)?;
            let detail = if truncated { TRUNCATED.to_owned() } else { String::new() };
            let verdict = Verdict { choice: job.prompt.choices[choice.index], probability: choice.probability, detail };
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

/// The tokens that every prompt of this template starts with: what two rows without a text in common share.
///
/// It depends on the template alone, so a verdict does not depend on which other rows are judged beside it.
fn shared_prefix(model: &LanguageModel, template: &PromptTemplate, sample: &Rendered) -> Result<Vec<i64>, OpError> {
    let render = |filler: &str| -> Result<String, OpError> {
        let rendered = template.render(&filled(&sample.row, filler)).map_err(OpError::new)?;
        Ok(model.render(&messages(&rendered), true)?)
    };
    let (a, b) = (render("\u{1}")?, render("\u{2}")?);
    let same = a.char_indices().zip(b.chars()).take_while(|((_, a), b)| a == b).map(|((at, a), _)| at + a.len_utf8()).last().unwrap_or(0);
    let mut ids = model.tokenizer.encode(&a[..same])?;
    // The last tokens before the text may join with what follows.
    ids.truncate(ids.len().saturating_sub(2));
    Ok(ids)
}

fn filled(row: &Value, filler: &str) -> Value {
    match row {
        Value::String(_) => Value::String(filler.to_owned()),
        Value::Array(items) => Value::Array(items.iter().map(|item| filled(item, filler)).collect()),
        Value::Object(fields) => Value::Object(fields.iter().map(|(name, value)| (name.clone(), filled(value, filler))).collect()),
        other => other.clone(),
    }
}

/// The prompt's tokens; where they are more than `limit`, the column `truncate` is cut until they fit.
fn fit(model: &LanguageModel, params: &Params, template: &PromptTemplate, job: &Job, limit: usize) -> Result<(Vec<i64>, bool), OpError> {
    let encode = |prompt: &Rendered| -> Result<Vec<i64>, OpError> { Ok(model.tokenizer.encode(&model.render(&messages(prompt), true)?)?) };
    // The answer itself needs a few tokens behind the prompt.
    let limit = limit.saturating_sub(8);
    let ids = encode(&job.prompt)?;
    if ids.len() <= limit {
        return Ok((ids, false));
    }
    let too_long = || {
        OpError::with_help(
            format!("the prompt of row `{}` has {} tokens, {} fit", job.id, ids.len(), limit),
            "name the column to cut in `truncate`, or raise `max_length`",
        )
    };
    let column = params.truncate.as_deref().ok_or_else(too_long)?;
    // Bisection over the share that is kept: prompts grow with their texts.
    let (mut low, mut high, mut best) = (0.0, 1.0, None);
    for _ in 0..12 {
        let keep = (low + high) / 2.0;
        let shorter = template.render(&job.prompt.shortened(column, keep)).map_err(OpError::new)?;
        let ids = encode(&shorter)?;
        if ids.len() <= limit {
            (low, best) = (keep, Some(ids));
        } else {
            high = keep;
        }
    }
    best.map(|ids| (ids, true)).ok_or_else(too_long)
}
