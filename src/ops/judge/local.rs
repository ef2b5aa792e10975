//! Judging with a model of ours: the allowed answers are scored by log-probability, nothing is parsed.

use std::time::{Duration, Instant};

use rayon::prelude::*;
use serde_json::Value;

use super::prompt::{PromptTemplate, Rendered};
use super::{CPU_WINDOW, Done, GPU_WINDOW, Job, Params, TRUNCATED};
use crate::cache::Verdict;
use crate::lm::{ChatTemplate, Chooser, LanguageModel, LmError, Message, Question, Tokenizer};
use crate::ops::loaded::{judge_quant, with_model};
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
    let quant = judge_quant(context, &params.quant, &params.dtype)?;
    with_model(context, "model", quant, &params.dtype, |model| {
        let prompter = Prompter::new(params, template, model);
        let chooser = Chooser::new(model, &prompter.shared_prefix(&jobs[0].prompt)?)?;
        let window = if model.decoder.placement().is_cpu() {
            CPU_WINDOW
        } else {
            GPU_WINDOW
        };
        let windows: Vec<&[Job]> = jobs.chunks(window).collect();
        let mut judged = Vec::new();
        let mut committed = Instant::now();
        let mut asked = prompter.ask_all(windows[0])?;
        let mut outcome = Ok(());
        for (number, jobs) in windows.iter().enumerate() {
            // The next window's prompts are rendered and encoded while this one is scored.
            let next = std::thread::scope(|scope| {
                let next = windows
                    .get(number + 1)
                    .map(|jobs| scope.spawn(|| prompter.ask_all(jobs)));
                let scored = score(&chooser, jobs, &asked, number * window, &mut judged);
                let next = next.map(|next| match next.join() {
                    Ok(asked) => asked,
                    Err(panic) => std::panic::resume_unwind(panic),
                });
                scored.and_then(|()| next.transpose())
            });
            let next = next.and_then(|next| context.check_cancelled().map(|()| next));
            match next {
                Ok(Some(next)) => asked = next,
                Ok(None) => break,
                Err(error) => {
                    outcome = Err(error);
                    break;
                }
            }
            if committed.elapsed() >= COMMIT_EVERY {
                done(&judged)?;
                judged.clear();
                committed = Instant::now();
            }
        }
        // What was judged before a failure counts too.
        if !judged.is_empty() {
            done(&judged)?;
        }
        outcome
    })
}

/// Scores the prompts of a window whose first job is number `first` of all.
fn score(
    chooser: &Chooser<'_>,
    jobs: &[Job],
    asked: &[Asked],
    first: usize,
    judged: &mut Vec<(usize, Verdict)>,
) -> Result<(), OpError> {
    let questions: Vec<&Question> = asked.iter().map(|asked| &asked.question).collect();
    let choices = chooser.choose_many(&questions)?;
    for (at, (asked, choice)) in asked.iter().zip(choices).enumerate() {
        let choice = choice.map_err(|error| about(&jobs[at], &error))?;
        let verdict = Verdict {
            choice: jobs[at].prompt.choices[choice.index],
            probability: choice.probability,
            detail: match asked.truncated {
                true => TRUNCATED.to_owned(),
                false => String::new(),
            },
        };
        judged.push((first + at, verdict));
    }
    Ok(())
}

fn about(job: &Job, error: &LmError) -> OpError {
    OpError::new(format!("row `{}`: {error}", job.id))
}

/// What turns a job into tokens. Unlike the model it may be used by several threads.
struct Prompter<'a> {
    params: &'a Params,
    template: &'a PromptTemplate,
    chat: Option<&'a ChatTemplate>,
    tokenizer: &'a Tokenizer,
    /// Tokens that a prompt may have.
    limit: usize,
}

/// A job as the model gets it.
struct Asked {
    question: Question,
    truncated: bool,
}

impl<'a> Prompter<'a> {
    fn new(params: &'a Params, template: &'a PromptTemplate, model: &'a LanguageModel) -> Self {
        let limit = params.max_length.min(model.config.context as usize);
        Self {
            params,
            template,
            chat: model.template.as_ref(),
            tokenizer: &model.tokenizer,
            // The answer itself needs a few tokens behind the prompt.
            limit: limit.saturating_sub(8),
        }
    }

    fn ask_all(&self, jobs: &[Job]) -> Result<Vec<Asked>, OpError> {
        jobs.par_iter().map(|job| self.ask(job)).collect()
    }

    fn ask(&self, job: &Job) -> Result<Asked, OpError> {
        let (prompt, truncated) = self.fit(job)?;
        let choices = job.prompt.choices.iter();
        let answers = choices
            .map(|choice| self.tokenizer.encode(&choice.to_string()))
            .collect::<Result<_, _>>()?;
        Ok(Asked {
            question: Question { prompt, answers },
            truncated,
        })
    }

    fn render(&self, prompt: &Rendered) -> Result<String, OpError> {
        let system = prompt.system.iter().map(Message::system);
        let messages: Vec<Message> = system.chain([Message::user(&prompt.user)]).collect();
        Ok(ChatTemplate::of_model(self.chat)?.render(&messages, true)?)
    }

    /// The text that every prompt of this template starts with: what two rows without a letter in common share.
    ///
    /// It depends on the template alone, so a verdict does not depend on which other rows are judged beside it.
    fn shared_prefix(&self, sample: &Rendered) -> Result<String, OpError> {
        let render = |filler: &str| -> Result<String, OpError> {
            let rendered = self
                .template
                .render(&filled(&sample.row, filler))
                .map_err(OpError::new)?;
            self.render(&rendered)
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

    /// The prompt's tokens; where they are more than the limit, the column `truncate` is cut until they fit.
    fn fit(&self, job: &Job) -> Result<(Vec<i64>, bool), OpError> {
        let encode = |prompt: &Rendered| -> Result<Vec<i64>, OpError> {
            Ok(self.tokenizer.encode(&self.render(prompt)?)?)
        };
        let limit = self.limit;
        let whole = encode(&job.prompt)?;
        if whole.len() <= limit {
            return Ok((whole, false));
        }
        let too_long = || {
            OpError::with_help(
                format!(
                    "the prompt of row `{}` has {} tokens, {limit} fit",
                    job.id,
                    whole.len()
                ),
                "name the column to cut in `truncate`, or raise `max_length`",
            )
        };
        let column = self.params.truncate.as_deref().ok_or_else(too_long)?;
        // Bisection over the share that is kept: prompts grow with their texts.
        let (mut low, mut high, mut best) = (0.0, 1.0, None);
        for _ in 0..12 {
            let keep = (low + high) / 2.0;
            let shorter = self
                .template
                .render(&job.prompt.shortened(column, keep))
                .map_err(OpError::new)?;
            let tokens = encode(&shorter)?;
            if tokens.len() <= limit {
                (low, best) = (keep, Some(tokens));
            } else {
                high = keep;
            }
        }
        best.map(|tokens| (tokens, true)).ok_or_else(too_long)
    }
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
