//! HTTP as W&B's servers expect it: JSON posts with the key as basic authentication, plain puts for files.

use std::error::Error as _;
use std::time::Duration;

use reqwest::Url;
use reqwest::blocking::{RequestBuilder, Response};
use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::failure::{Call, Failure, retry_after};
use super::lines::beginning;
use super::settings::ApiKey;

/// Limits for one attempt, those of W&B's own client.
const CONNECT: Duration = Duration::from_secs(10);
const GRAPHQL: Duration = Duration::from_secs(30);
const STREAM: Duration = Duration::from_secs(180);
/// Of what a server says about an error.
const SHOWN: usize = 200;

#[derive(Debug)]
pub struct Client {
    http: reqwest::blocking::Client,
    base_url: Url,
    key: ApiKey,
}

impl Client {
    pub fn new(base_url: Url, key: ApiKey) -> Result<Self, Failure> {
        // A redirected post arrives as a get, without its content: the user should know, not the server.
        let mut http = reqwest::blocking::Client::builder()
            .user_agent(concat!("flow/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT)
            .redirect(reqwest::redirect::Policy::none());
        if is_local(&base_url) {
            http = http.no_proxy();
        }
        let http = http
            .build()
            .map_err(|error| Failure::Refused(format!("no HTTP client can be made: {error}")))?;
        Ok(Self {
            http,
            base_url,
            key,
        })
    }

    /// Runs a query or mutation; what is asked for is `data` of the answer.
    pub fn graphql<T: DeserializeOwned>(
        &self,
        call: Call,
        name: &str,
        query: &str,
        variables: &Value,
    ) -> Result<T, Failure> {
        let body = json!({ "query": query, "operationName": name, "variables": variables });
        let url = self.url(&["graphql"]);
        let request = self
            .http
            .post(url.clone())
            .basic_auth("api", Some(self.key.reveal()))
            .timeout(GRAPHQL)
            .json(&body);
        let text = text(self.send(call, &url, request)?)?;
        read_answer(&text, name, &self.base_url)
    }

    /// Posts to a run's file stream.
    pub fn stream(
        &self,
        entity: &str,
        project: &str,
        run: &str,
        body: Vec<u8>,
    ) -> Result<(), Failure> {
        let url = self.url(&["files", entity, project, run, "file_stream"]);
        let request = self
            .http
            .post(url.clone())
            .basic_auth("api", Some(self.key.reveal()))
            .header(CONTENT_TYPE, "application/json")
            .timeout(STREAM)
            .body(body);
        // The answer's body says nothing that is needed; read, so that the connection can be used again.
        text(self.send(Call::Stream, &url, request)?).map(drop)
    }

    /// Puts a file where the server said, without the key: the place may belong to somebody else.
    pub fn upload(&self, place: &str, headers: &[String], content: Vec<u8>) -> Result<(), Failure> {
        let url = self
            .base_url
            .join(place)
            .map_err(|error| Failure::Refused(format!("`{place}` is no address: {error}")))?;
        let mut request = self.http.put(url.clone()).timeout(STREAM).body(content);
        for header in headers {
            if let Some((name, value)) = header.split_once(':') {
                request = request.header(name, value);
            }
        }
        self.send(Call::Upload, &url, request).map(drop)
    }

    fn url(&self, segments: &[&str]) -> Url {
        let mut url = self.base_url.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(segments);
        }
        url
    }

    fn send(&self, call: Call, url: &Url, request: RequestBuilder) -> Result<Response, Failure> {
        let host = url.origin().ascii_serialization();
        let response = request.send().map_err(|error| lost(&host, &error))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let after = response
            .headers()
            .get(RETRY_AFTER)
            .and_then(|value| retry_after(value.to_str().ok()?, jiff::Timestamp::now()));
        let said = response.text().unwrap_or_default();
        let said = match shown(&said) {
            said if said.is_empty() => String::new(),
            said => format!(": {said}"),
        };
        let message = format!("{host} answers {status}{said}");
        Err(match status.as_u16() {
            413 => Failure::TooLarge(message),
            code if call.is_final(code) => Failure::Refused(message),
            _ => Failure::Busy { message, after },
        })
    }
}

fn is_local(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// The body, without which nobody knows what the answer was.
fn text(response: Response) -> Result<String, Failure> {
    let host = response.url().origin().ascii_serialization();
    response.text().map_err(|error| lost(&host, &error))
}

/// No answer, in few words; the address is named already.
fn lost(host: &str, error: &reqwest::Error) -> Failure {
    let mut cause = error.source();
    while let Some(deeper) = cause.and_then(std::error::Error::source) {
        cause = Some(deeper);
    }
    let cause = cause.map(|cause| format!(" ({cause})")).unwrap_or_default();
    if error.is_connect() {
        return Failure::Unreachable(format!("{host} cannot be reached{cause}"));
    }
    let message = if error.is_timeout() {
        format!("{host} does not answer in time")
    } else {
        format!("the connection to {host} broke off{cause}")
    };
    Failure::Busy {
        message,
        after: None,
    }
}

fn shown(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let beginning = beginning(&line, SHOWN);
    if beginning.len() < line.len() {
        format!("{beginning}…")
    } else {
        line
    }
}

/// The `data` of a GraphQL answer (spec.graphql.org, 7.1), or what went wrong.
fn read_answer<T: DeserializeOwned>(text: &str, name: &str, server: &Url) -> Result<T, Failure> {
    let unreadable = || Failure::Refused(format!("{} does not speak W&B's protocol", server));
    let mut answer: Value = serde_json::from_str(text).map_err(|_| unreadable())?;
    let errors = answer["errors"]
        .as_array()
        .filter(|errors| !errors.is_empty());
    if let Some(errors) = errors {
        let said: Vec<_> = errors
            .iter()
            .map(|error| error["message"].as_str().unwrap_or("an error"))
            .collect();
        return Err(Failure::Refused(format!(
            "{} answers {name}: {}",
            server,
            shown(&said.join("; "))
        )));
    }
    // Not by an index, which panics where the answer is no object.
    let data = answer.get_mut("data").map(Value::take).unwrap_or_default();
    serde_json::from_value(data).map_err(|_| unreadable())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_keep_the_path_of_the_server() {
        let url = |base: &str| {
            let base = super::super::settings::base_url(base, "").unwrap();
            let client = Client::new(base, ApiKey::new("k")).unwrap();
            client
                .url(&["files", "my team", "é", "r1", "file_stream"])
                .to_string()
        };
        assert_eq!(
            url("http://127.0.0.1:9"),
            "http://127.0.0.1:9/files/my%20team/%C3%A9/r1/file_stream"
        );
        assert_eq!(
            url("https://example.org/wandb/"),
            "https://example.org/wandb/files/my%20team/%C3%A9/r1/file_stream"
        );
    }

    #[test]
    fn who_cannot_be_reached_is_named() {
        // Bound and closed at once: nobody listens there.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let base = super::super::settings::base_url(&format!("http://{address}"), "").unwrap();
        let client = Client::new(base, ApiKey::new("k")).unwrap();
        let failure = client.stream("e", "p", "r", Vec::new()).unwrap_err();
        assert!(matches!(failure, Failure::Unreachable(_)));
        let message = failure
            .to_string()
            .replace(&address.to_string(), "[server]");
        insta::assert_snapshot!(message, @"http://[server] cannot be reached (Connection refused (os error 111))");
    }

    #[test]
    fn survives_damage() {
        let server = Url::parse("http://localhost").unwrap();
        let seeds = [
            r#"{"data":{"upsertBucket":{"bucket":{"id":"x","name":"r","project":{"name":"p","entity":{"name":"e"}}},"inserted":true}}}"#,
            r#"{"errors":[{"message":"no such project","path":["upsertBucket"]}],"data":null}"#,
            "7",
            "[]",
        ];
        let seeds = seeds.map(|seed| seed.as_bytes().to_vec());
        crate::fuzz::survives(&seeds, |bytes| {
            let text = String::from_utf8_lossy(bytes);
            let _ = read_answer::<Value>(&text, "UpsertBucket", &server);
        });
    }
}
