//! `flow serve` as a child process.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use reqwest::blocking::{Client, RequestBuilder, Response};
use serde_json::Value;

use super::Project;

/// Killed with the test.
pub struct Server {
    child: Child,
    pub address: String,
    client: Client,
}

impl Server {
    /// Serves the latest run on a free port.
    pub fn start(project: &Project, arguments: &[&str]) -> Self {
        let all = [&["serve", "--port", "0", "--dtype", "f32"], arguments].concat();
        let mut command = project.command(&all);
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        if line.is_empty() {
            let mut error = String::new();
            child
                .stderr
                .take()
                .unwrap()
                .read_to_string(&mut error)
                .unwrap();
            panic!("it did not start: {error}");
        }
        Self {
            child,
            address: line.trim().to_owned(),
            client: Client::builder()
                .timeout(Duration::from_secs(120))
                .build()
                .unwrap(),
        }
    }

    pub fn get(&self, path: &str) -> RequestBuilder {
        self.client.get(format!("{}{path}", self.address))
    }

    pub fn post(&self, body: &Value) -> RequestBuilder {
        self.client
            .post(format!("{}/v1/chat/completions", self.address))
            .json(body)
    }

    /// A completion, which must be given.
    #[track_caller]
    pub fn complete(&self, body: &Value) -> Value {
        let response = self.post(body).send().unwrap();
        let status = response.status();
        let value: Value = response.json().unwrap();
        assert_eq!(status, 200, "{value}");
        value
    }

    /// Status and error object of a request that must be refused.
    #[track_caller]
    pub fn refused(&self, request: RequestBuilder) -> (u16, Value) {
        let response = request.send().unwrap();
        let status = response.status().as_u16();
        (status, response.json::<Value>().unwrap()["error"].clone())
    }

    /// The value of a line of `/metrics`.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").send().unwrap().text().unwrap();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().unwrap())
    }

    /// Waits until a metric is `value`.
    #[track_caller]
    pub fn wait_for(&self, name: &str, value: f64) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.metric(name) != value {
            assert!(Instant::now() < deadline, "{name} is {}", self.metric(name));
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn terminate(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    }

    pub fn wait(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The data of the server-sent events of a response, one by one.
pub fn events(response: Response) -> impl Iterator<Item = String> {
    let lines = BufReader::new(response).lines().map_while(Result::ok);
    lines.filter_map(|line| line.strip_prefix("data: ").map(str::to_owned))
}
