//! Judging through an OpenAI-compatible endpoint: `POST {url}/chat/completions`, answers parsed as one of the allowed integers.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use serde_json::{Value, json};

use super::prompt::{PromptTemplate, Rendered};
use super::{Done, Job, Params};
use crate::cache::Verdict;
use crate::ops::{Context, OpError};

/// Requests in flight at a time.
const PARALLEL: usize = 8;
/// Tries of one request; waits double from [`FIRST_WAIT`] unless the server says how long.
const TRIES: u32 = 6;
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(60);

struct Endpoint {
    client: reqwest::blocking::Client,
    url: String,
    model: String,
    key: Option<String>,
}

enum Failure {
    /// Worth another try, after so long if the server said.
    Passing(String, Option<Duration>),
    Final(OpError),
}

pub(super) fn judge(
    context: &Context,
    _params: &Params,
    _template: &PromptTemplate,
    jobs: &[Job],
    done: &mut Done<'_>,
) -> Result<(), OpError> {
    if context.offline {
        return Err(OpError::with_help(
            "the judge is an endpoint, and the run is offline",
            "run without --offline, or name a local model",
        ));
    }
    let endpoint = Endpoint::new(context)?;
    let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let (answers, inbox) = mpsc::channel();
    let work = |answers: mpsc::Sender<(usize, Result<Verdict, OpError>)>| {
        while !stop.load(Ordering::Relaxed) {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(job) = jobs.get(at) else { break };
            let verdict = endpoint.ask(context, &job.id, &job.prompt);
            if verdict.is_err() {
                stop.store(true, Ordering::Relaxed);
            }
            if answers.send((at, verdict)).is_err() {
                break;
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..PARALLEL.min(jobs.len()) {
            let answers = answers.clone();
            scope.spawn(|| work(answers));
        }
        drop(answers);
        let mut error = None;
        // What has come in while others were made durable is made durable with one more write.
        while let Ok(first) = inbox.recv() {
            let mut good = Vec::new();
            for (at, verdict) in std::iter::once(first).chain(inbox.try_iter()) {
                match verdict {
                    Ok(verdict) => good.push((at, verdict)),
                    Err(failure) => error = error.or(Some(failure)),
                }
            }
            // What succeeded is kept also when another failed.
            if !good.is_empty()
                && let Err(failure) = done(&good)
            {
                stop.store(true, Ordering::Relaxed);
                error = error.or(Some(failure));
            }
        }
        error.map_or(Ok(()), Err)
    })
}

impl Endpoint {
    fn new(context: &Context) -> Result<Self, OpError> {
        let spec = context
            .node
            .models
            .get("model")
            .ok_or_else(|| OpError::new("no model given"))?;
        let url = spec.url.clone().unwrap_or_default();
        let model = spec.name.clone().unwrap_or_default();
        let key = match &spec.api_key_env {
            None => None,
            Some(name) => Some(std::env::var(name).map_err(|_| {
                OpError::with_help(
                    format!(
                        "the environment variable `{name}` with the API key of {url} is not set"
                    ),
                    format!("export {name}=…"),
                )
            })?),
        };
        let client = reqwest::blocking::Client::builder()
            .timeout(Duration::from_secs(120))
            .build()
            .map_err(|error| OpError::new(error.to_string()))?;
        Ok(Self {
            client,
            url: url.trim_end_matches('/').to_owned(),
            model,
            key,
        })
    }

    fn ask(&self, context: &Context, id: &str, prompt: &Rendered) -> Result<Verdict, OpError> {
        let mut messages = Vec::new();
        if let Some(system) = &prompt.system {
            messages.push(json!({ "role": "system", "content": system }));
        }
        messages.push(json!({ "role": "user", "content": prompt.user }));
        let mut wait = FIRST_WAIT;
        let mut last = String::new();
        for _ in 0..TRIES {
            context.check_cancelled()?;
            match self.request(&messages) {
                Ok(text) => match parse_choice(&text, &prompt.choices) {
                    Some(choice) => {
                        return Ok(Verdict {
                            choice,
                            probability: 1.0,
                            detail: String::new(),
                        });
                    }
                    None => {
                        // Tell the model what was wrong once; the next answer counts as any other.
                        last = format!(
                            "answered `{}`, not one of {:?}",
                            shown(&text),
                            prompt.choices
                        );
                        messages.truncate(if prompt.system.is_some() { 2 } else { 1 });
                        messages.push(json!({ "role": "assistant", "content": text }));
                        messages.push(json!({ "role": "user", "content": format!("Reply with exactly one of these integers and nothing else: {:?}", prompt.choices) }));
                    }
                },
                Err(Failure::Passing(reason, after)) => {
                    last = reason;
                    std::thread::sleep(after.unwrap_or(wait).min(LONGEST_WAIT));
                    wait *= 2;
                }
                Err(Failure::Final(error)) => return Err(error),
            }
        }
        Err(OpError::with_help(
            format!(
                "{} gave no verdict for row `{id}` in {TRIES} tries: {last}",
                self.url
            ),
            "run again: verdicts so far are kept",
        ))
    }

    fn request(&self, messages: &[Value]) -> Result<String, Failure> {
        let body =
            json!({ "model": self.model, "messages": messages, "temperature": 0, "max_tokens": 8 });
        let mut request = self
            .client
            .post(format!("{}/chat/completions", self.url))
            .json(&body);
        if let Some(key) = &self.key {
            request = request.bearer_auth(key);
        }
        let response = request
            .send()
            .map_err(|error| Failure::Passing(error.to_string(), None))?;
        let status = response.status();
        if status.as_u16() == 429 || status.is_server_error() {
            let after = response
                .headers()
                .get("retry-after")
                .and_then(|value| value.to_str().ok()?.parse().ok())
                .map(Duration::from_secs);
            return Err(Failure::Passing(format!("HTTP {status}"), after));
        }
        let text = response
            .text()
            .map_err(|error| Failure::Passing(error.to_string(), None))?;
        if !status.is_success() {
            return Err(Failure::Final(OpError::with_help(
                format!("{} answered HTTP {status}: {}", self.url, shown(&text)),
                "check `url`, `name` and `api_key_env` of the model",
            )));
        }
        let answer: Value = serde_json::from_str(&text)
            .map_err(|error| Failure::Passing(format!("not JSON: {error}"), None))?;
        let content = answer
            .pointer("/choices/0/message/content")
            .and_then(Value::as_str);
        content
            .map(str::to_owned)
            .ok_or_else(|| Failure::Passing(format!("no message in {}", shown(&text)), None))
    }
}

/// The allowed integer that the answer is, if it is one: a lone integer, with or without a full stop, quotes or emphasis.
fn parse_choice(answer: &str, choices: &[i64]) -> Option<i64> {
    let bare = answer
        .trim()
        .trim_matches(|c: char| matches!(c, '.' | '"' | '\'' | '`' | '*' | '(' | ')' | '[' | ']'));
    let number: i64 = bare.trim().parse().ok()?;
    choices.contains(&number).then_some(number)
}

fn shown(text: &str) -> String {
    let line = text.replace('\n', " ");
    if line.chars().count() <= 200 {
        line
    } else {
        line.chars().take(200).chain(['…']).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::parse_choice;

    #[test]
    fn only_a_lone_allowed_integer_counts() {
        let choices = [0, 1, 2, 10];
        assert_eq!(parse_choice(" 2.\n", &choices), Some(2));
        assert_eq!(parse_choice("**10**", &choices), Some(10));
        assert_eq!(parse_choice("3", &choices), None);
        assert_eq!(parse_choice("Answer 1 of 2", &choices), None);
        assert_eq!(parse_choice("", &choices), None);
    }
}
