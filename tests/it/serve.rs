//! `flow serve`: the model that a run has trained, asked over HTTP.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::server::{Server, events};
use crate::support::tuned::tuned;

/// The likeliest token each time, so that texts can be compared.
fn asked(model: &str, question: &str, tokens: u32) -> Value {
    json!({
        "model": model, "messages": [{ "role": "user", "content": question }],
        "temperature": 0, "repetition_penalty": 1, "no_repeat_ngram_size": 0, "max_tokens": tokens,
    })
}

fn content(answer: &Value) -> &str {
    answer["choices"][0]["message"]["content"].as_str().unwrap()
}

/// A question whose answer by the base does not end by itself within `tokens`.
fn endless(server: &Server, tokens: u32) -> Value {
    let questions = (0..50).map(|place| format!("What is {place}?"));
    let mut bodies = questions.map(|question| asked("base", &question, tokens));
    bodies
        .find(|body| server.complete(body)["choices"][0]["finish_reason"] == "length")
        .expect("a random model rarely ends")
}

#[test]
fn completions_whole_and_streamed() {
    let project = tuned();
    let server = Server::start(&project, &[]);
    let body = asked("tuned", "What is case 3?", 40);
    let whole = server.complete(&body);
    let base = server.complete(&asked("base", "What is case 3?", 40));
    assert_ne!(content(&whole), content(&base));
    assert_eq!(content(&server.complete(&body)), content(&whole));
    assert_eq!(
        (&whole["object"], &whole["model"]),
        (&json!("chat.completion"), &json!("tuned"))
    );
    let usage = &whole["usage"];
    assert_eq!(
        usage["total_tokens"],
        usage["prompt_tokens"].as_u64().unwrap() + usage["completion_tokens"].as_u64().unwrap()
    );

    let mut streamed = body.clone();
    streamed["stream"] = json!(true);
    streamed["stream_options"] = json!({ "include_usage": true });
    let response = server.post(&streamed).send().unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let mut data: Vec<String> = events(response).collect();
    assert_eq!(data.pop().unwrap(), "[DONE]");
    let chunks: Vec<Value> = data
        .iter()
        .map(|data| serde_json::from_str(data).unwrap())
        .collect();
    let text: String = chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str())
        .collect();
    assert_eq!(text, content(&whole));
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    assert_eq!(
        chunks[chunks.len() - 2]["choices"][0]["finish_reason"],
        whole["choices"][0]["finish_reason"]
    );
    assert_eq!(&chunks[chunks.len() - 1]["usage"], usage);

    // The sampled answer of a seed is the same again.
    let sampled =
        json!({ "model": "base", "messages": body["messages"], "seed": 5, "max_tokens": 30 });
    assert_eq!(
        content(&server.complete(&sampled)),
        content(&server.complete(&sampled))
    );

    assert_eq!(
        server
            .get("/health")
            .send()
            .unwrap()
            .json::<Value>()
            .unwrap()["status"],
        "ok"
    );
    let models: Value = server.get("/v1/models").send().unwrap().json().unwrap();
    assert_eq!(
        (&models["data"][0]["id"], &models["data"][1]["id"]),
        (&json!("base"), &json!("tuned"))
    );
    assert!(
        server
            .get("/")
            .send()
            .unwrap()
            .text()
            .unwrap()
            .contains("no medical advice")
            || server
                .get("/about")
                .send()
                .unwrap()
                .text()
                .unwrap()
                .contains("no medical advice")
    );
    let written = usage["completion_tokens"].as_f64().unwrap();
    // Three times the same answer; a stop token is not written.
    assert_eq!(
        server.metric("flow_new_tokens_total{model=\"tuned\"}"),
        3.0 * written
    );
}

#[test]
fn answers_written_together_are_those_written_alone() {
    let project = tuned();
    let server = Server::start(&project, &["--slots", "4", "--queue", "16"]);
    let bodies: Vec<Value> = (0..10)
        .map(|place| {
            asked(
                ["base", "tuned"][place % 2],
                &format!("What is case {}?", "9".repeat(place + 1)),
                10 + 7 * place as u32,
            )
        })
        .collect();
    let alone: Vec<Value> = bodies
        .iter()
        .map(|body| server.complete(body)["choices"].clone())
        .collect();
    let together: Vec<Value> = std::thread::scope(|scope| {
        let asking: Vec<_> = bodies
            .iter()
            .map(|body| scope.spawn(|| server.complete(body)["choices"].clone()))
            .collect();
        asking
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    assert_eq!(together, alone);
}

#[test]
fn an_answer_ends_before_a_stop_string() {
    let project = tuned();
    let server = Server::start(&project, &[]);
    // Of a random model much is no text.
    let mut bodies = (0..50).map(|place| asked("tuned", &format!("What is case {place}?"), 60));
    let (mut body, whole) = bodies
        .find_map(|body| {
            let text = content(&server.complete(&body)).to_owned();
            (text.chars().count() >= 12).then_some((body, text))
        })
        .expect("the tuned model writes text");
    let stop: String = whole.chars().skip(6).take(3).collect();
    body["stop"] = json!([stop]);
    let cut = server.complete(&body);
    assert_eq!(content(&cut), whole.split(&stop).next().unwrap());
    assert_eq!(cut["choices"][0]["finish_reason"], "stop");
    assert!(cut["usage"]["completion_tokens"].as_u64().unwrap() < 60);
}

#[test]
fn requests_that_cannot_be_answered_say_why() {
    let project = tuned();
    let server = Server::start(&project, &["--context", "300"]);
    let body = asked("tuned", "What?", 10);
    let bad = |key: &str, value: Value| {
        let mut body = body.clone();
        body[key] = value;
        server.refused(server.post(&body))
    };
    let (status, error) = bad("model", json!("gpt"));
    assert_eq!((status, &error["code"]), (404, &json!("model_not_found")));
    let (status, error) = bad("max_tokens", json!(400));
    assert_eq!(
        (status, &error["code"]),
        (400, &json!("context_length_exceeded"))
    );
    let (status, error) = bad("temperature", json!("warm"));
    assert_eq!(
        (status, &error["param"], &error["type"]),
        (400, &json!("temperature"), &json!("invalid_request_error"))
    );
    assert_eq!(
        bad(
            "messages",
            json!([{ "role": "user", "content": "x".repeat(1 << 20) }])
        )
        .0,
        413
    );
    assert_eq!(server.refused(server.get("/v1/nothing")).0, 404);
    assert_eq!(server.refused(server.get("/v1/chat/completions")).0, 405);
    // `headers` replaces what is there.
    let text = [(
        "content-type".parse().unwrap(),
        "text/plain".parse().unwrap(),
    )];
    let plain = server.post(&body).headers(text.into_iter().collect());
    assert_eq!(server.refused(plain).0, 415);
    // A page of another site, through a name of its own.
    assert_eq!(
        server
            .refused(server.get("/v1/models").header("host", "evil.example"))
            .0,
        403
    );
    // And still it answers.
    server.complete(&body);
}

/// More come at once than may wait, and no more than there are slots and places.
#[test]
fn a_burst_finds_the_free_slots() {
    let project = tuned();
    let server = Server::start(&project, &["--slots", "8", "--queue", "1"]);
    let asked = asked("base", "What?", 30);
    for _ in 0..3 {
        std::thread::scope(|scope| {
            for _ in 0..9 {
                scope.spawn(|| server.complete(&asked));
            }
        });
    }
    assert_eq!(server.metric("flow_refused_total{status=\"429\"}"), 0.0);
}

#[test]
fn a_full_queue_refuses_and_a_client_that_leaves_makes_room() {
    let project = tuned();
    let server = Server::start(&project, &["--slots", "1", "--queue", "1"]);
    let mut long = endless(&server, 1500);
    long["max_tokens"] = json!(3900);
    long["stream"] = json!(true);
    let holding = server.post(&long).send().unwrap();
    server.wait_for("flow_answers_running", 1.0);
    let short = asked("tuned", "What?", 5);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| server.complete(&short));
        server.wait_for("flow_answers_waiting", 1.0);
        let response = server.post(&short).send().unwrap();
        assert_eq!(response.status(), 429);
        assert!(response.headers().contains_key("retry-after"));
        assert_eq!(
            response.json::<Value>().unwrap()["error"]["code"],
            "rate_limit_exceeded"
        );
        // The one that holds the slot goes away in the middle of its answer.
        drop(holding);
        assert!(
            waiting.join().unwrap()["usage"]["completion_tokens"]
                .as_u64()
                .unwrap()
                <= 5
        );
    });
    assert_eq!(
        server.metric("flow_answers_total{finish=\"cancelled\",model=\"base\"}"),
        1.0
    );
    assert_eq!(server.metric("flow_refused_total{status=\"429\"}"), 1.0);
}

#[test]
fn a_terminated_server_finishes_its_answers() {
    let project = tuned();
    let mut server = Server::start(&project, &[]);
    let mut body = endless(&server, 400);
    body["stream"] = json!(true);
    let mut data = events(server.post(&body).send().unwrap());
    data.next().unwrap();
    server.terminate();
    let rest: Vec<String> = data.collect();
    assert_eq!(rest.last().unwrap(), "[DONE]");
    assert!(
        rest[rest.len() - 2].contains("\"finish_reason\":\"length\""),
        "{}",
        rest[rest.len() - 2]
    );
    assert!(server.wait().success());
    assert!(server.get("/health").send().is_err());
}

#[test]
fn other_machines_need_a_key() {
    let project = tuned();
    let refused = project.flow(&["serve", "--host", "0.0.0.0"]).code(2);
    insta::assert_snapshot!(refused.messages(), @r"
    error: others could use the model at 0.0.0.0
      help: give a key with `--api-key` or `FLOW_API_KEY`, or leave out `--host` to serve this machine only
    ");
    let project = project.variable("FLOW_API_KEY", "s3cret");
    let server = Server::start(&project, &[]);
    let (status, error) = server.refused(server.get("/v1/models"));
    assert_eq!((status, &error["code"]), (401, &json!("invalid_api_key")));
    assert_eq!(
        server
            .refused(
                server
                    .post(&asked("tuned", "What?", 5))
                    .bearer_auth("wrong")
            )
            .0,
        401
    );
    assert_eq!(
        server
            .get("/v1/models")
            .bearer_auth("s3cret")
            .send()
            .unwrap()
            .status(),
        200
    );
    assert_eq!(server.get("/health").send().unwrap().status(), 200);
}

/// A connection of a client that speaks for itself.
fn connect(server: &Server) -> TcpStream {
    let stream = TcpStream::connect(server.address.trim_start_matches("http://")).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    stream
}

/// All that comes until the server closes.
fn rest(mut stream: TcpStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn connections_are_bounded() {
    let project = tuned();
    let server = Server::start(&project, &["--connections", "2"]);
    // The client of the test keeps none open.
    let open = [connect(&server), connect(&server)];
    let mut third = connect(&server);
    third
        .write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .unwrap();
    let answer = rest(third);
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(
        answer.contains("2 connections are open, as many as may be")
            && answer.contains("retry-after: 1"),
        "{answer}"
    );
    drop(open);
    // The server sees soon that they are gone.
    let deadline = Instant::now() + Duration::from_secs(60);
    while server.get("/health").send().unwrap().status() != 200 {
        assert!(Instant::now() < deadline, "the places are not free again");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Clients that begin a request and do not end it.
#[test]
fn slow_clients_are_left() {
    let project = tuned();
    let mut server = Server::start(&project, &["--patience", "1"]);
    let mut head = connect(&server);
    head.write_all(b"GET /health HTTP/1.1\r\nHost: local")
        .unwrap();
    let mut body = connect(&server);
    body.write_all(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{",
    )
    .unwrap();
    let silent = connect(&server);
    // Closed, or told so and closed.
    rest(silent);
    rest(head);
    let answer = rest(body);
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(
        answer.contains("the request did not arrive within 1 s"),
        "{answer}"
    );
    // Those that are there when it stops do not keep it.
    let _silent = connect(&server);
    let mut half = connect(&server);
    half.write_all(b"GET /hea").unwrap();
    server.terminate();
    assert!(server.wait().success());
}
