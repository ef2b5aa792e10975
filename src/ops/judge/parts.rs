//! Judging in parts: prompts that no verdict is known for go to other processes, which only answer them.
//!
//! The table of verdicts is made where the rows are, from all verdicts.

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::prompt::PromptTemplate;
use super::{CPU_WINDOW, GPU_WINDOW, Job, JudgeFn, Params};
use crate::cache::Verdict;
use crate::digest::Digest;
use crate::ops::{Context, Item, OpError, Outputs, Parts};

/// How often prompts that are left over are given out again. Once is enough where an earlier try had other prompts.
const TRIES: usize = 3;

/// A row to be judged; the template is rendered again by who judges it.
#[derive(Serialize, Deserialize)]
struct Question {
    id: String,
    key: Digest,
    row: Value,
}

type Answer = (Digest, Verdict);

/// Has other processes judge `missing`; `keep` makes verdicts durable as they come.
pub(super) fn hand_out(
    context: &Context<'_>,
    others: &dyn Parts,
    missing: &[Job],
    keep: &mut dyn FnMut(Vec<Answer>) -> Result<(), OpError>,
) -> Result<(), OpError> {
    let mut left: HashMap<Digest, &Job> = missing.iter().map(|job| (job.key, job)).collect();
    for _ in 0..TRIES {
        let asked = missing.iter().filter(|job| left.contains_key(&job.key));
        let mut items: Vec<Item> = asked.map(item).collect::<Result<_, _>>()?;
        if items.is_empty() {
            return Ok(());
        }
        let together = together(context, items.len());
        for (index, item) in items.iter_mut().enumerate() {
            item.group = index / together;
        }
        others.answer(context, &items, &mut |lines| {
            let answers = lines
                .iter()
                .map(|line| {
                    serde_json::from_str::<Answer>(line)
                        .map_err(|error| OpError::new(format!("a verdict is damaged: {error}")))
                })
                .collect::<Result<Vec<_>, _>>()?;
            let new = answers
                .into_iter()
                .filter(|(key, _)| left.remove(key).is_some());
            keep(new.collect())
        })?;
    }
    match left.len() {
        0 => Ok(()),
        count => Err(OpError::with_help(
            format!("{count} prompts got no verdict in {TRIES} tries"),
            "run again: verdicts so far are kept",
        )),
    }
}

/// How many prompts must stay together. A model of ours computes them in windows, and the last bits of a probability depend
/// on what else is in one, so parts are cut between windows. An endpoint answers each by itself.
fn together(context: &Context<'_>, prompts: usize) -> usize {
    let model = context.node.models.get("model");
    if model.is_some_and(|model| model.url.is_some()) {
        1
    } else if prompts >= 2 * GPU_WINDOW {
        // Whole windows of a CPU too.
        GPU_WINDOW
    } else {
        CPU_WINDOW
    }
}

fn item(job: &Job) -> Result<Item, OpError> {
    let question = Question {
        id: job.id.clone(),
        key: job.key,
        row: job.prompt.row.clone(),
    };
    let text = serde_json::to_string(&question).map_err(std::io::Error::from)?;
    let prompt = job.prompt.user.len() + job.prompt.system.as_ref().map_or(0, String::len);
    Ok(Item {
        text,
        weight: prompt as u64,
        group: 0,
    })
}

/// Judges the prompts of a part, but for those that an earlier try at it has answered.
pub(super) fn answer(
    context: &mut Context<'_>,
    params: &Params,
    template: &PromptTemplate,
    judge: JudgeFn,
) -> Result<Outputs, OpError> {
    let part = context
        .part
        .as_ref()
        .ok_or_else(|| OpError::new("there is no part to do"))?;
    let known: HashSet<Digest> = part
        .earlier::<Answer>()?
        .into_iter()
        .map(|(key, _)| key)
        .collect();
    let mut jobs = Vec::new();
    for Question { id, key, row } in part.items::<Question>()? {
        if !known.contains(&key) {
            let prompt = template
                .render(&row)
                .map_err(|message| OpError::new(format!("row `{id}`: {message}")))?;
            jobs.push(Job { id, key, prompt });
        }
    }
    if !jobs.is_empty() {
        judge(context, params, template, &jobs, &mut |batch| {
            let answer = |(index, verdict): &(usize, Verdict)| (jobs[*index].key, verdict.clone());
            part.answer(&batch.iter().map(answer).collect::<Vec<Answer>>())
        })?;
    }
    context.finish()
}
