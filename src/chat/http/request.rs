//! A request for a completion, checked field by field. What this server cannot do is refused, not left out.

use serde_json::{Map, Value};

use super::failure::Failure;
use crate::chat::{Decoding, Voice};
use crate::lm::Message;

#[derive(Debug)]
pub struct Request {
    pub voice: Voice,
    pub messages: Vec<Message>,
    pub decoding: Decoding,
    pub stream: bool,
    /// A last event with the counts of tokens.
    pub include_usage: bool,
}

/// Fields that change the answer in ways this server has not, and the values that ask for nothing.
const UNSUPPORTED: [(&str, &[&str]); 12] = [
    ("audio", &[]),
    ("frequency_penalty", &["0", "0.0"]),
    ("function_call", &["\"none\"", "\"auto\""]),
    ("functions", &["[]"]),
    ("logit_bias", &["{}"]),
    ("logprobs", &["false"]),
    ("n", &["1"]),
    ("presence_penalty", &["0", "0.0"]),
    ("response_format", &[r#"{"type":"text"}"#]),
    ("tool_choice", &["\"none\"", "\"auto\""]),
    ("tools", &["[]"]),
    ("top_logprobs", &["0"]),
];

const ROLES: [&str; 3] = ["system", "user", "assistant"];
/// OpenAI's own limit.
const MOST_STOPS: usize = 4;

/// # Errors
/// What is wrong with the request, as it is to be answered.
pub fn parse(body: &[u8]) -> Result<Request, Failure> {
    let value: Value = serde_json::from_slice(body)
        .map_err(|error| Failure::malformed(format!("the body is not JSON: {error}")))?;
    let Value::Object(fields) = value else {
        return Err(Failure::malformed("the body is not a JSON object"));
    };
    for (name, neutral) in UNSUPPORTED {
        if let Some(value) = fields.get(name).filter(|value| !value.is_null()) {
            let text = value.to_string();
            if !neutral.contains(&text.as_str()) {
                return Err(Failure::bad(
                    name,
                    format!("`{name}: {text}` is not supported"),
                ));
            }
        }
    }
    let voice = match fields.get("model") {
        Some(Value::String(name)) => {
            Voice::from_name(name).ok_or_else(|| Failure::no_model(name))?
        }
        _ => {
            return Err(Failure::bad(
                "model",
                "`model` must be the name of a model, `base` or `tuned`",
            ));
        }
    };
    let include_usage = fields
        .get("stream_options")
        .is_some_and(|options| options["include_usage"] == true);
    Ok(Request {
        voice,
        messages: messages(&fields)?,
        decoding: decoding(&fields)?,
        stream: flag(&fields, "stream")?,
        include_usage,
    })
}

fn messages(fields: &Map<String, Value>) -> Result<Vec<Message>, Failure> {
    let bad = |message: String| Failure::bad("messages", message);
    let list = fields
        .get("messages")
        .and_then(Value::as_array)
        .filter(|list| !list.is_empty());
    let list =
        list.ok_or_else(|| bad("`messages` must be a list with at least one message".to_owned()))?;
    let one = |(place, message): (usize, &Value)| {
        let role = match message["role"].as_str() {
            // OpenAI's newer name.
            Some("developer") => "system",
            Some(role) if ROLES.contains(&role) => role,
            _ => {
                return Err(bad(format!(
                    "`messages[{place}].role` is {}; it must be `system`, `user` or `assistant`",
                    message["role"]
                )));
            }
        };
        let content = text(&message["content"])
            .ok_or_else(|| bad(format!("`messages[{place}].content` must be text")))?;
        Ok(Message::new(role, content))
    };
    list.iter().enumerate().map(one).collect()
}

/// A string, or a list of text parts.
fn text(content: &Value) -> Option<String> {
    match content {
        Value::String(text) => Some(text.clone()),
        Value::Array(parts) => {
            let texts = parts.iter().map(|part| {
                (part["type"] == "text")
                    .then(|| part["text"].as_str())
                    .flatten()
            });
            texts
                .collect::<Option<Vec<_>>>()
                .map(|texts| texts.concat())
        }
        _ => None,
    }
}

fn decoding(fields: &Map<String, Value>) -> Result<Decoding, Failure> {
    let mut decoding = Decoding::default();
    for name in ["max_tokens", "max_completion_tokens"] {
        if let Some(tokens) = whole(fields, name, 1)? {
            decoding.max_new_tokens = tokens as usize;
        }
    }
    let sample = &mut decoding.sample;
    if let Some(temperature) = number(fields, "temperature", 0.0, 2.0)? {
        sample.temperature = temperature;
    }
    if let Some(top_p) = number(fields, "top_p", 0.0, 1.0)? {
        sample.top_p = top_p;
    }
    if let Some(penalty) = number(fields, "repetition_penalty", 0.1, 10.0)? {
        sample.repetition_penalty = penalty;
    }
    if let Some(top_k) = whole(fields, "top_k", 0)? {
        sample.top_k = top_k as usize;
    }
    if let Some(size) = whole(fields, "no_repeat_ngram_size", 0)? {
        sample.no_repeat_ngram = size as usize;
    }
    sample.seed = match fields.get("seed") {
        None | Some(Value::Null) => fresh_seed(),
        Some(seed) => match (seed.as_i64(), seed.as_u64()) {
            (Some(seed), _) => seed as u64,
            (None, Some(seed)) => seed,
            (None, None) => return Err(Failure::bad("seed", "`seed` must be a whole number")),
        },
    };
    decoding.stops = stops(fields.get("stop"))?;
    Ok(decoding)
}

/// A seed that no other request has.
fn fresh_seed() -> u64 {
    use std::hash::{BuildHasher as _, RandomState};
    RandomState::new().hash_one(0)
}

fn stops(value: Option<&Value>) -> Result<Vec<String>, Failure> {
    let bad = || {
        Failure::bad(
            "stop",
            format!("`stop` must be a text that is not empty, or a list of up to {MOST_STOPS}"),
        )
    };
    let stops: Option<Vec<String>> = match value {
        None | Some(Value::Null) => Some(Vec::new()),
        Some(Value::String(stop)) => Some(vec![stop.clone()]),
        Some(Value::Array(stops)) => stops
            .iter()
            .map(|stop| stop.as_str().map(str::to_owned))
            .collect(),
        Some(_) => None,
    };
    stops
        .filter(|stops| stops.len() <= MOST_STOPS && stops.iter().all(|stop| !stop.is_empty()))
        .ok_or_else(bad)
}

fn flag(fields: &Map<String, Value>, name: &'static str) -> Result<bool, Failure> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(_) => Err(Failure::bad(
            name,
            format!("`{name}` must be true or false"),
        )),
    }
}

fn number(
    fields: &Map<String, Value>,
    name: &'static str,
    least: f64,
    most: f64,
) -> Result<Option<f64>, Failure> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value
            .as_f64()
            .filter(|number| (least..=most).contains(number))
        {
            Some(number) => Ok(Some(number)),
            None => Err(Failure::bad(
                name,
                format!("`{name}` is {value}; it must be a number from {least} to {most}"),
            )),
        },
    }
}

fn whole(
    fields: &Map<String, Value>,
    name: &'static str,
    least: u64,
) -> Result<Option<u64>, Failure> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value
            .as_u64()
            .filter(|number| (least..=1 << 31).contains(number))
        {
            Some(number) => Ok(Some(number)),
            None => Err(Failure::bad(
                name,
                format!("`{name}` is {value}; it must be a whole number of at least {least}"),
            )),
        },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parsed(changes: Value) -> Result<Request, String> {
        let mut body = json!({ "model": "tuned", "messages": [{ "role": "user", "content": "What is a cyst?" }] });
        for (key, value) in changes.as_object().unwrap() {
            body[key] = value.clone();
        }
        parse(body.to_string().as_bytes()).map_err(|failure| {
            failure.as_json()["error"]["message"]
                .as_str()
                .unwrap()
                .to_owned()
        })
    }

    #[test]
    fn defaults_are_those_of_the_chat() {
        let request = parsed(json!({ "seed": 7 })).unwrap();
        let mut expected = Decoding::default();
        expected.sample.seed = 7;
        assert_eq!(request.decoding, expected);
        assert_eq!((request.voice, request.stream), (Voice::Tuned, false));
        assert_eq!(
            (
                expected.max_new_tokens,
                expected.sample.top_k,
                expected.sample.no_repeat_ngram
            ),
            (512, 20, 4)
        );
    }

    #[test]
    fn fields_are_taken() {
        let request = parsed(json!({
            "model": "base", "stream": true, "stream_options": { "include_usage": true }, "max_completion_tokens": 9,
            "temperature": 0, "top_k": 1, "stop": ["a", "b"], "n": 1, "tools": [], "unknown": 3,
            "messages": [{ "role": "developer", "content": [{ "type": "text", "text": "A" }, { "type": "text", "text": "B" }] }, { "role": "user", "content": "C" }],
        }))
        .unwrap();
        assert_eq!(
            request.messages,
            [Message::system("AB"), Message::user("C")]
        );
        assert!(request.stream && request.include_usage);
        let decoding = &request.decoding;
        assert_eq!(
            (
                decoding.max_new_tokens,
                decoding.sample.temperature,
                decoding.stops.len()
            ),
            (9, 0.0, 2)
        );
    }

    #[test]
    fn what_cannot_be_done_is_refused() {
        let refused = |changes| parsed(changes).unwrap_err();
        insta::assert_snapshot!(refused(json!({ "model": "gpt" })), @"there is no model `gpt`; there are `base` and `tuned`");
        insta::assert_snapshot!(refused(json!({ "model": null })), @"`model` must be the name of a model, `base` or `tuned`");
        insta::assert_snapshot!(refused(json!({ "messages": [] })), @"`messages` must be a list with at least one message");
        insta::assert_snapshot!(refused(json!({ "messages": [{ "role": "tool", "content": "" }] })), @r#"`messages[0].role` is "tool"; it must be `system`, `user` or `assistant`"#);
        insta::assert_snapshot!(refused(json!({ "messages": [{ "role": "user", "content": [{ "type": "image_url" }] }] })), @"`messages[0].content` must be text");
        insta::assert_snapshot!(refused(json!({ "temperature": 3 })), @"`temperature` is 3; it must be a number from 0 to 2");
        insta::assert_snapshot!(refused(json!({ "max_tokens": 0 })), @"`max_tokens` is 0; it must be a whole number of at least 1");
        insta::assert_snapshot!(refused(json!({ "n": 2 })), @"`n: 2` is not supported");
        insta::assert_snapshot!(refused(json!({ "stop": "" })), @"`stop` must be a text that is not empty, or a list of up to 4");
        insta::assert_snapshot!(refused(json!({ "stream": "yes" })), @"`stream` must be true or false");
        insta::assert_snapshot!(refused(json!({ "seed": 1.5 })), @"`seed` must be a whole number");
        assert!(parse(b"{").is_err() && parse(b"[]").is_err());
    }

    #[test]
    fn survives_damage() {
        let seed = json!({
            "model": "tuned", "stream": true, "stream_options": { "include_usage": true }, "temperature": 0.7, "top_p": 0.8,
            "max_tokens": 64, "seed": 7, "stop": ["a", "b"],
            "messages": [
                { "role": "system", "content": "Be brief." },
                { "role": "user", "content": [{ "type": "text", "text": "What is a cyst?" }] },
            ],
        });
        crate::fuzz::survives(&[seed.to_string().into()], |bytes| {
            let _ = parse(bytes);
        });
    }
}
