//! A server that speaks as much of W&B's protocol as `flow` does, keeps what it is sent, and fails on demand.
//!
//! It honours offsets, and notes whatever a client must never do: leave a gap, change a line, send the key to where files go.

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use serde_json::{Value, json};

/// Long enough to be looked for in what flow leaves.
pub const KEY: &str = "local-7f3a9c0d5e";
/// `api:` and the key in Base64.
const AUTHORIZATION: &str = "Basic YXBpOmxvY2FsLTdmM2E5YzBkNWU=";

/// What goes wrong with one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    Status(u16),
    /// 429 with this `Retry-After`.
    Later(&'static str),
    /// The connection ends before anything is done.
    CutBefore,
    /// Everything is done, and the answer is lost.
    CutAfter,
    /// No answer until the server is told to go on; nothing is done.
    Hang,
    /// Everything is done, and no answer comes until the server is told to go on.
    HangAfter,
    /// 200 with `errors`.
    GraphqlError,
    /// 413 where the body is longer.
    Limit(usize),
}

#[derive(Debug, Clone, Default)]
pub struct Run {
    pub project: String,
    pub display_name: String,
    pub group: String,
    pub job_type: String,
    pub config: Value,
    pub history: Vec<String>,
    pub events: Vec<String>,
    pub console: Vec<String>,
    pub summary: String,
    pub files: BTreeMap<String, Vec<u8>>,
    /// Names of files told to the file stream.
    pub uploaded: Vec<String>,
    pub exit_code: Option<i64>,
}

#[derive(Debug, Default)]
pub struct State {
    pub runs: BTreeMap<String, Run>,
    /// `UpsertBucket`, `file_stream`, `PUT report.html`, …, with those that failed.
    pub requests: Vec<String>,
    /// What a client must never do.
    pub violations: Vec<String>,
    /// Faults by kind of request; each happens once, in order.
    faults: BTreeMap<String, VecDeque<Fault>>,
    /// Requests that hang now.
    pub hanging: usize,
    go_on: bool,
}

pub struct TrackingServer {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

struct Request {
    method: String,
    path: String,
    authorization: Option<String>,
    body: Vec<u8>,
}

impl TrackingServer {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback is there");
        let address = listener.local_addr().expect("it is bound");
        let shared = Arc::new(Shared::default());
        let of_thread = Arc::clone(&shared);
        // Ends with the process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&of_thread);
                std::thread::spawn(move || shared.serve(stream, address));
            }
        });
        Self { address, shared }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The next requests of a kind (`UpsertBucket`, `file_stream`, `PUT`) go wrong so.
    pub fn faults(&self, kind: &str, faults: impl IntoIterator<Item = Fault>) {
        let mut state = self.state();
        state
            .faults
            .entry(kind.to_owned())
            .or_default()
            .extend(faults);
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().expect("no handler panicked")
    }

    /// Answers what hangs, and lets nothing hang any more.
    pub fn go_on(&self) {
        self.state().go_on = true;
        self.shared.changed.notify_all();
    }

    /// Waits until something is as it should be.
    #[track_caller]
    pub fn wait(&self, done: impl Fn(&State) -> bool) {
        let (state, wait) = self
            .shared
            .changed
            .wait_timeout_while(self.state(), Duration::from_secs(60), |state| !done(state))
            .expect("no handler panicked");
        assert!(!wait.timed_out(), "waited too long: {state:#?}");
    }

    /// The one run there is; nothing forbidden was done.
    #[track_caller]
    pub fn only_run(&self) -> Run {
        let state = self.state();
        assert_eq!(state.violations, [""; 0]);
        assert_eq!(state.runs.len(), 1, "{:#?}", state.runs);
        state.runs.values().next().cloned().unwrap_or_default()
    }
}

impl Run {
    /// Rows of history; non-finite numbers as strings.
    pub fn rows(&self) -> Vec<Value> {
        self.history.iter().map(|line| strict(line)).collect()
    }

    pub fn summary(&self) -> Value {
        strict(&self.summary)
    }
}

/// Parses JSON in which non-finite numbers are bare words.
fn strict(line: &str) -> Value {
    let mut line = line.to_owned();
    for word in ["NaN", "-Infinity", "Infinity"] {
        line = line.replace(&format!(":{word}"), &format!(":\"{word}\""));
    }
    serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error} in {line}"))
}

impl Shared {
    fn serve(&self, stream: TcpStream, address: SocketAddr) {
        let mut reader = BufReader::new(stream.try_clone().expect("a socket has two ends"));
        while let Some(request) = read(&mut reader) {
            let Some(answer) = self.answer(&request, address) else {
                return;
            };
            self.changed.notify_all();
            if (&stream).write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    }

    /// `None` where the connection is cut.
    fn answer(&self, request: &Request, address: SocketAddr) -> Option<String> {
        let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
        let kind = match (request.method.as_str(), body["operationName"].as_str()) {
            ("PUT", _) => "PUT".to_owned(),
            (_, Some(name)) => name.to_owned(),
            _ => request
                .path
                .rsplit('/')
                .next()
                .unwrap_or_default()
                .to_owned(),
        };
        let mut state = self.state.lock().expect("no handler panicked");
        state.requests.push(kind.clone());
        let expected = (kind != "PUT").then_some(AUTHORIZATION);
        if request.authorization.as_deref() != expected {
            let violation = format!("{kind} with {:?}", request.authorization);
            state.violations.push(violation);
        }
        let fault = state.faults.get_mut(&kind).and_then(VecDeque::pop_front);
        match fault {
            Some(Fault::Status(status)) => return Some(response(status, "", "{\"error\":\"no\"}")),
            Some(Fault::Later(after)) => {
                return Some(response(429, &format!("Retry-After: {after}\r\n"), "{}"));
            }
            Some(Fault::CutBefore) => return None,
            Some(Fault::Limit(most)) if request.body.len() > most => {
                // Every request is measured.
                let faults = state.faults.entry(kind).or_default();
                faults.push_front(Fault::Limit(most));
                return Some(response(413, "", ""));
            }
            Some(Fault::Limit(most)) => {
                let faults = state.faults.entry(kind.clone()).or_default();
                faults.push_front(Fault::Limit(most));
            }
            Some(Fault::GraphqlError) => {
                return Some(response(
                    200,
                    "",
                    "{\"errors\":[{\"message\":\"project is read-only\"}],\"data\":null}",
                ));
            }
            Some(Fault::Hang) => {
                self.hang(state);
                return None;
            }
            _ => {}
        }
        let answer = match kind.as_str() {
            "PUT" => state.put(request),
            "file_stream" => state.stream(request, &body),
            name => state.graphql(name, &body["variables"], address),
        };
        match fault {
            Some(Fault::CutAfter) => {
                self.changed.notify_all();
                None
            }
            Some(Fault::HangAfter) => {
                self.hang(state);
                None
            }
            _ => Some(answer),
        }
    }

    fn hang(&self, mut state: MutexGuard<State>) {
        state.hanging += 1;
        self.changed.notify_all();
        drop(self.changed.wait_while(state, |state| !state.go_on));
    }
}

impl State {
    fn graphql(&mut self, name: &str, variables: &Value, address: SocketAddr) -> String {
        let text = |key: &str| variables[key].as_str().unwrap_or_default().to_owned();
        let data = match name {
            "UpsertBucket" => {
                let id = text("name");
                let run = self.runs.entry(id.clone()).or_default();
                run.project = text("project");
                run.display_name = text("displayName");
                run.group = text("groupName");
                run.job_type = text("jobType");
                run.config = serde_json::from_str(&text("config")).unwrap_or_default();
                run.exit_code = None;
                let entity = variables["entity"].as_str().unwrap_or("owner");
                let project = json!({ "name": run.project, "entity": { "name": entity } });
                json!({ "upsertBucket": { "bucket": { "id": format!("storage-{id}"), "name": id, "project": project } } })
            }
            "RunResumeStatus" => match self.runs.get(&text("name")) {
                None => json!({ "model": null }),
                Some(run) => {
                    let bucket = json!({
                        "id": format!("storage-{}", text("name")),
                        "historyLineCount": run.history.len(),
                        "eventsLineCount": run.events.len(),
                        "logLineCount": run.console.len(),
                    });
                    json!({ "model": { "bucket": bucket } })
                }
            },
            "CreateRunFiles" => {
                let names = variables["files"].as_array().cloned().unwrap_or_default();
                let place = |name: &Value| {
                    let url = format!(
                        "http://{address}/put/{}/{}",
                        text("run"),
                        name.as_str().unwrap_or_default()
                    );
                    json!({ "name": name, "uploadUrl": url })
                };
                let files: Vec<_> = names.iter().map(place).collect();
                json!({ "createRunFiles": { "runID": "x", "uploadHeaders": ["X-Extra:1"], "files": files } })
            }
            other => {
                return response(
                    200,
                    "",
                    &json!({ "errors": [{ "message": format!("no {other}") }] }).to_string(),
                );
            }
        };
        response(200, "", &json!({ "data": data }).to_string())
    }

    fn put(&mut self, request: &Request) -> String {
        let mut parts = request.path.splitn(4, '/').skip(2);
        let (run, name) = (
            parts.next().unwrap_or_default(),
            parts.next().unwrap_or_default(),
        );
        let run = self.runs.entry(run.to_owned()).or_default();
        run.files.insert(name.to_owned(), request.body.clone());
        response(200, "", "")
    }

    /// Puts lines where they belong: what is there already must be the same, and there are no gaps.
    fn stream(&mut self, request: &Request, body: &Value) -> String {
        let id = request.path.split('/').rev().nth(1).unwrap_or_default();
        let Some(run) = self.runs.get_mut(id) else {
            return response(404, "", "{}");
        };
        let empty = serde_json::Map::new();
        for (file, chunk) in body["files"].as_object().unwrap_or(&empty) {
            let lines = chunk["content"].as_array().cloned().unwrap_or_default();
            let mut lines = lines
                .iter()
                .map(|line| line.as_str().unwrap_or_default().to_owned());
            let offset = chunk["offset"].as_u64().unwrap_or(u64::MAX) as usize;
            let into = match file.as_str() {
                "wandb-history.jsonl" => &mut run.history,
                "wandb-events.jsonl" => &mut run.events,
                "output.log" => &mut run.console,
                "wandb-summary.json" => {
                    run.summary = lines.next_back().unwrap_or_default();
                    continue;
                }
                other => {
                    self.violations.push(format!("a file `{other}`"));
                    continue;
                }
            };
            for (place, line) in (offset..).zip(lines) {
                match into.get(place) {
                    Some(there) if *there == line => {}
                    Some(there) => self
                        .violations
                        .push(format!("{file} {place}: {there} became {line}")),
                    None if place == into.len() => into.push(line),
                    None => self
                        .violations
                        .push(format!("{file}: a gap before {place}")),
                }
            }
        }
        for name in body["uploaded"].as_array().into_iter().flatten() {
            let name = name.as_str().unwrap_or_default();
            if !run.files.contains_key(name) {
                self.violations
                    .push(format!("`{name}` was named and not uploaded"));
            }
            run.uploaded.push(name.to_owned());
        }
        if body["complete"] == true {
            run.exit_code = body["exitcode"].as_i64();
        }
        response(200, "", "{\"exitcode\":null,\"limits\":{}}")
    }
}

/// One request; `None` at the end of the connection.
fn read(reader: &mut BufReader<TcpStream>) -> Option<Request> {
    let mut line = String::new();
    reader
        .read_line(&mut line)
        .ok()
        .filter(|length| *length > 0)?;
    let mut words = line.split_whitespace();
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let (mut length, mut authorization) = (0, None);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else {
            break;
        };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.trim().parse().ok()?,
            "authorization" => authorization = Some(value.trim().to_owned()),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(Request {
        method,
        path,
        authorization,
        body,
    })
}

fn response(status: u16, headers: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status} x\r\n{headers}Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}
