//! Answers as OpenAI's clients read them: whole, or as server-sent events.

use std::convert::Infallible;
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Json};
use futures_util::{Stream, StreamExt as _};
use serde_json::{Value, json};
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::failure::Failure;
use crate::chat::{Answer, Piece, Voice};
use crate::lm::Finish;

/// What all parts of an answer say.
#[derive(Clone)]
pub struct Head {
    id: String,
    created: i64,
    voice: Voice,
}

impl Head {
    pub fn new(voice: Voice) -> Self {
        let now = jiff::Timestamp::now();
        let digest = blake3::hash(&now.as_nanosecond().to_le_bytes());
        Self {
            id: format!("chatcmpl-{}", &digest.to_hex()[..24]),
            created: now.as_second(),
            voice,
        }
    }

    fn object(&self, kind: &str, choices: Value) -> Value {
        json!({ "id": self.id, "object": kind, "created": self.created, "model": self.voice.name(), "choices": choices })
    }

    fn chunk(&self, delta: Value, finish: Option<&str>) -> Value {
        self.object(
            "chat.completion.chunk",
            json!([{ "index": 0, "delta": delta, "logprobs": null, "finish_reason": finish }]),
        )
    }
}

fn reason(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop => "stop",
        Finish::Length => "length",
    }
}

fn usage(prompt: usize, tokens: usize) -> Value {
    json!({ "prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens })
}

/// # Errors
/// What went wrong in the model.
pub async fn whole(head: Head, mut answer: Answer) -> Result<impl IntoResponse, Failure> {
    let mut text = String::new();
    while let Some(piece) = answer.pieces.recv().await {
        match piece {
            Piece::Text(more) => text.push_str(&more),
            Piece::Failed(message) => return Err(Failure::internal(message)),
            Piece::Done { finish, tokens } => {
                let message = json!({ "role": "assistant", "content": text, "refusal": null });
                let choice = json!({ "index": 0, "message": message, "logprobs": null, "finish_reason": reason(finish) });
                let mut object = head.object("chat.completion", json!([choice]));
                object["usage"] = usage(answer.prompt_tokens, tokens);
                return Ok(Json(object));
            }
        }
    }
    Err(Failure::internal("the answer was not finished"))
}

/// One event per piece, then `[DONE]`. A client that goes away drops the stream, and with it the answer.
pub fn stream(
    head: Head,
    answer: Answer,
    include_usage: bool,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let prompt_tokens = answer.prompt_tokens;
    let first = head.chunk(json!({ "role": "assistant", "content": "" }), None);
    let pieces = UnboundedReceiverStream::new(answer.pieces).flat_map(move |piece| {
        let events = match piece {
            Piece::Text(text) => vec![head.chunk(json!({ "content": text }), None).to_string()],
            Piece::Failed(message) => vec![Failure::internal(message).as_json().to_string()],
            Piece::Done { finish, tokens } => {
                let mut events = vec![head.chunk(json!({}), Some(reason(finish))).to_string()];
                if include_usage {
                    let mut object = head.object("chat.completion.chunk", json!([]));
                    object["usage"] = usage(prompt_tokens, tokens);
                    events.push(object.to_string());
                }
                events.push("[DONE]".to_owned());
                events
            }
        };
        futures_util::stream::iter(events)
    });
    let all = futures_util::stream::iter([first.to_string()]).chain(pieces);
    let events = all.map(|data| Ok(Event::default().data(data)));
    Sse::new(events).keep_alive(KeepAlive::new().interval(Duration::from_secs(15)))
}
