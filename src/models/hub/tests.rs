//! The hub as a fake server plays it.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Mutex;

use super::*;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A hub on loopback with one repository, `me/tiny`; stops answering when dropped.
struct FakeHub {
    endpoint: String,
    requests: Arc<Mutex<Vec<String>>>,
}

impl FakeHub {
    fn start(files: &'static [(&'static str, &'static str)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = requests.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                answer(stream, files, &seen);
            }
        });
        Self { endpoint, requests }
    }

    fn hub(&self, cache: &Path) -> Hub {
        Hub {
            endpoint: Some(self.endpoint.clone()),
            cache: Some(cache.to_owned()),
            offline: false,
        }
    }

    fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.requests.lock().unwrap())
    }
}

fn answer(mut stream: TcpStream, files: &[(&str, &str)], seen: &Mutex<Vec<String>>) {
    let mut lines = BufReader::new(stream.try_clone().unwrap())
        .lines()
        .map_while(Result::ok);
    let Some(request) = lines.next() else { return };
    lines.take_while(|line| !line.is_empty()).for_each(drop);
    let mut words = request.split(' ');
    let (method, target) = (words.next().unwrap(), words.next().unwrap());
    seen.lock().unwrap().push(format!("{method} {target}"));
    let path = target.split('?').next().unwrap();
    let (status, headers, body) = if path.starts_with("/api/models/me/tiny/revision/") {
        (
            "200 OK",
            String::new(),
            format!(r#"{{"id": "me/tiny", "sha": "{COMMIT}"}}"#),
        )
    } else if path.starts_with("/api/models/me/tiny/tree/") {
        let entry = |(name, content): &(&str, &str)| {
            // The listing says what the whole file has; `short.safetensors` comes cut off.
            let size = content.len() + usize::from(*name == "short.safetensors");
            serde_json::json!({"type": "file", "oid": "0", "size": size, "path": name})
        };
        let list: Vec<_> = files.iter().map(entry).collect();
        (
            "200 OK",
            String::new(),
            serde_json::to_string(&list).unwrap(),
        )
    } else if let Some(name) = path.strip_prefix(&format!("/me/tiny/resolve/{COMMIT}/")) {
        let content = files.iter().find(|file| file.0 == name).unwrap().1;
        let headers = format!(
            "ETag: \"{}\"\r\nX-Repo-Commit: {COMMIT}\r\n",
            blake3::hash(content.as_bytes())
        );
        ("200 OK", headers, content.to_owned())
    } else {
        (
            "404 Not Found",
            "X-Error-Code: RepoNotFound\r\n".to_owned(),
            r#"{"error": "not found"}"#.to_owned(),
        )
    };
    let head = format!(
        "HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    let body = if method == "HEAD" { "" } else { &body };
    let _ = stream.write_all(format!("{head}{body}").as_bytes());
}

const TINY: &[(&str, &str)] = &[
    ("config.json", "{}"),
    ("tokenizer.json", "{\"a\": 1}"),
    ("model.safetensors", "weights"),
    ("pytorch_model.bin", "never fetched"),
    ("original/model.safetensors", "never fetched"),
    ("small.gguf", "GGUF"),
];

fn quiet(_: &str, _: u64, _: u64) {}

#[test]
fn only_what_counts_is_fetched_and_only_once() {
    let (server, cache) = (FakeHub::start(TINY), tempfile::tempdir().unwrap());
    let hub = server.hub(cache.path());
    let totals = std::cell::RefCell::new(Vec::new());
    let found = hub.fetch("me/tiny", None, &|what, done, total| {
        totals.borrow_mut().push((what.to_owned(), done, total))
    });
    let folder = found.unwrap().path;
    assert_eq!(
        std::fs::read_to_string(folder.join("model.safetensors")).unwrap(),
        "weights"
    );
    assert!(!folder.join("pytorch_model.bin").exists() && !folder.join("original").exists());
    assert_eq!(
        totals.borrow().last().unwrap(),
        &("me/tiny".to_owned(), 17, 17)
    );
    server.requests();

    assert_eq!(hub.fetch("me/tiny", None, &quiet).unwrap().path, folder);
    assert_eq!(server.requests(), ["GET /api/models/me/tiny/revision/main"]);
    assert_eq!(
        hub.fetch("me/tiny", Some(COMMIT), &quiet).unwrap().path,
        folder
    );
    let offline = Hub {
        offline: true,
        ..server.hub(cache.path())
    };
    assert_eq!(offline.fetch("me/tiny", None, &quiet).unwrap().path, folder);
    assert!(server.requests().is_empty());
}

#[test]
fn one_file_of_a_repository() {
    let (server, cache) = (FakeHub::start(TINY), tempfile::tempdir().unwrap());
    let hub = server.hub(cache.path());
    let path = hub.fetch("me/tiny/small.gguf", None, &quiet).unwrap().path;
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "GGUF");
    assert!(!path.with_file_name("model.safetensors").exists());
    insta::assert_snapshot!(hub.fetch("me/tiny/large.gguf", None, &quiet).unwrap_err(), @"`me/tiny` has no file `large.gguf`");
}

#[test]
fn an_unreachable_hub_leaves_the_copy_of_before() {
    let (server, cache) = (FakeHub::start(TINY), tempfile::tempdir().unwrap());
    let fetched = server
        .hub(cache.path())
        .fetch("me/tiny", None, &quiet)
        .unwrap();
    let closed = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let down = Hub {
        endpoint: Some(format!("http://{closed}")),
        ..server.hub(cache.path())
    };
    let found = down.fetch("me/tiny", None, &quiet).unwrap();
    assert_eq!(found.path, fetched.path);
    insta::assert_snapshot!(found.note.unwrap(), @"the hub cannot be reached; `me/tiny` is the copy fetched before");
    let error = down
        .fetch("me/other", None, &quiet)
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("the hub cannot be reached for `me/other`"),
        "{error}"
    );
}

#[test]
fn what_the_hub_does_not_have_is_said_in_one_line() {
    let (server, cache) = (FakeHub::start(TINY), tempfile::tempdir().unwrap());
    insta::assert_snapshot!(server.hub(cache.path()).fetch("me/none", None, &quiet).unwrap_err(), @"the hub has no model `me/none`");
    let offline = Hub {
        offline: true,
        ..server.hub(cache.path())
    };
    insta::assert_snapshot!(offline.fetch("me/tiny", None, &quiet).unwrap_err(), @"`me/tiny` (revision `main`) cannot be used offline: it was never fetched");
}

#[test]
fn a_cut_off_file_is_not_kept() {
    const SHORT: &[(&str, &str)] = &[
        ("config.json", "{}"),
        ("tokenizer.json", "{}"),
        ("short.safetensors", "weigh"),
    ];
    let (server, cache) = (FakeHub::start(SHORT), tempfile::tempdir().unwrap());
    let hub = server.hub(cache.path());
    insta::assert_snapshot!(hub.fetch("me/tiny", None, &quiet).unwrap_err(), @"`short.safetensors` of `me/tiny` came with 5 bytes instead of 6");
    let offline = Hub {
        offline: true,
        ..hub
    };
    assert!(offline.fetch("me/tiny", None, &quiet).is_err());
}
