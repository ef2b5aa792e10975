//! Models of the Hugging Face hub, through its shared cache folder.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use hf_hub::progress::{DownloadEvent, FileStatus, ProgressEvent, ProgressHandler};
use hf_hub::repository::{RepoTreeEntry, RepoTypeModel};
use hf_hub::{HFClient, HFClientSync, HFError, HFRepositorySync, split_id};

use super::{ModelError, local};
use crate::download::chain;

/// Where models come from; `None` leaves it to the environment (`HF_ENDPOINT`, `HF_HUB_CACHE` or `HF_HOME`).
pub(super) struct Hub {
    pub(super) endpoint: Option<String>,
    pub(super) cache: Option<PathBuf>,
    pub(super) offline: bool,
}

/// A folder or file in the hub's cache.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) path: PathBuf,
    pub(super) note: Option<String>,
}

/// One model of the hub: a repository, or one GGUF file in it.
struct Wanted<'a> {
    id: &'a str,
    revision: &'a str,
    file: Option<&'a str>,
}

impl Hub {
    pub(super) fn from_environment(offline: bool) -> Self {
        let set = std::env::var("HF_HUB_OFFLINE")
            .unwrap_or_default()
            .to_ascii_lowercase();
        let offline = offline || matches!(set.as_str(), "1" | "true" | "yes" | "on");
        Self {
            endpoint: None,
            cache: None,
            offline,
        }
    }

    /// Gives the local folder of `owner/name`, or the file of `owner/name/file.gguf`; only files that count are fetched.
    ///
    /// A commit that is cached whole is used without a request; a branch is asked for its newest commit, and the cached
    /// one is taken, with a note, where the hub cannot be reached.
    pub(super) fn fetch(
        &self,
        name: &str,
        revision: Option<&str>,
        fetching: &dyn Fn(&str, u64, u64),
    ) -> Result<Found, ModelError> {
        let mut parts = name.splitn(3, '/');
        let id_length = parts
            .by_ref()
            .take(2)
            .map(|part| part.len() + 1)
            .sum::<usize>()
            - 1;
        let wanted = Wanted {
            id: &name[..id_length],
            revision: revision.unwrap_or("main"),
            file: parts.next(),
        };
        let cache = self.cache.clone().unwrap_or_else(hf_hub::resolve_cache_dir);

        let cached = wanted.cached(&cache, wanted.revision);
        if self.offline {
            return cached
                .map(|path| Found { path, note: None })
                .map_err(|missing| wanted.offline(&missing));
        }
        if let (Ok(path), true) = (&cached, is_commit(wanted.revision)) {
            return Ok(Found {
                path: path.clone(),
                note: None,
            });
        }
        match (
            self.client()
                .map_err(Failed::from)
                .and_then(|client| wanted.download(&client, &cache, fetching)),
            cached,
        ) {
            (Ok(path), _) => Ok(Found { path, note: None }),
            (Err(Failed::Hub(error)), Ok(path)) if is_unreachable(&error) => {
                let note = format!(
                    "the hub cannot be reached; `{}` is the copy fetched before",
                    wanted.id
                );
                Ok(Found {
                    path,
                    note: Some(note),
                })
            }
            (Err(Failed::Hub(error)), _) => Err(wanted.explain(&error)),
            (Err(Failed::Model(error)), _) => Err(error),
        }
    }

    fn client(&self) -> Result<HFClientSync, HFError> {
        let agent = concat!("flow/", env!("CARGO_PKG_VERSION"));
        let http = reqwest::Client::builder()
            .user_agent(agent)
            .connect_timeout(Duration::from_secs(15))
            .build()?;
        let mut builder = HFClient::builder()
            .client(http)
            .user_agent(agent)
            .retry_max_attempts(3);
        if let Some(endpoint) = &self.endpoint {
            builder = builder.endpoint(endpoint);
        }
        if let Some(cache) = &self.cache {
            builder = builder.cache_dir(cache);
        }
        builder.build_sync()
    }
}

enum Failed {
    Hub(HFError),
    Model(ModelError),
}

impl From<HFError> for Failed {
    fn from(error: HFError) -> Self {
        Self::Hub(error)
    }
}

impl Wanted<'_> {
    /// The model as it is in the cache, if nothing of it is missing; else what is. Asks nobody.
    fn cached(&self, cache: &Path, revision: &str) -> Result<PathBuf, String> {
        let repository = cache.join(format!("models--{}", self.id.replace('/', "--")));
        let commit = if is_commit(revision) {
            revision.to_owned()
        } else {
            let known = std::fs::read_to_string(repository.join("refs").join(revision));
            known
                .map_err(|_| "it was never fetched".to_owned())?
                .trim()
                .to_owned()
        };
        let folder = repository.join("snapshots").join(commit);
        match self.file {
            Some(file) if folder.join(file).is_file() => Ok(folder.join(file)),
            Some(file) => Err(format!("`{file}` was never fetched")),
            None if !folder.is_dir() => Err("it was never fetched".to_owned()),
            None => local::check(&folder)
                .map(|_| folder)
                .map_err(|error| error.message),
        }
    }

    fn download(
        &self,
        client: &HFClientSync,
        cache: &Path,
        fetching: &dyn Fn(&str, u64, u64),
    ) -> Result<PathBuf, Failed> {
        let (owner, name) = split_id(self.id);
        let model: HFRepositorySync<RepoTypeModel> = client.model(owner, name);
        let commit = model.info().revision(self.revision).send()?.sha;
        if let Some(Ok(path)) = commit.as_deref().map(|commit| self.cached(cache, commit)) {
            return Ok(path);
        }
        let tree = model
            .list_tree()
            .revision(self.revision)
            .recursive(true)
            .send()?;
        let counts = |path: &str| {
            self.file
                .map_or_else(|| local::is_part(path), |file| path == file)
        };
        let files: Vec<(String, u64)> = tree
            .into_iter()
            .filter_map(|entry| match entry {
                RepoTreeEntry::File { path, size, .. } if counts(&path) => Some((path, size)),
                _ => None,
            })
            .collect();
        if let (Some(file), true) = (self.file, files.is_empty()) {
            let help = "name a GGUF file of the repository, or the repository alone";
            return Err(Failed::Model(ModelError::new(
                format!("`{}` has no file `{file}`", self.id),
                help,
            )));
        }
        let names: Vec<String> = files.iter().map(|(name, _)| name.clone()).collect();
        let folder = watch(self.id, fetching, |counter| {
            model
                .snapshot_download()
                .revision(self.revision)
                .allow_patterns(names)
                .progress(counter)
                .send()
        })?;
        for (name, size) in &files {
            let path = folder.join(name);
            let got = std::fs::metadata(&path)
                .map(|metadata| metadata.len())
                .unwrap_or_default();
            if got != *size {
                // A wrong blob would be taken for the right one for ever.
                let blob = std::fs::canonicalize(&path).unwrap_or_else(|_| path.clone());
                let _ = (std::fs::remove_file(&path), std::fs::remove_file(blob));
                let message = format!(
                    "`{name}` of `{}` came with {got} bytes instead of {size}",
                    self.id
                );
                return Err(Failed::Model(ModelError::new(
                    message,
                    "run again; what is whole is kept",
                )));
            }
        }
        Ok(self.file.map_or(folder.clone(), |file| folder.join(file)))
    }

    fn offline(&self, missing: &str) -> ModelError {
        let (id, revision) = (self.id, self.revision);
        ModelError::new(
            format!("`{id}` (revision `{revision}`) cannot be used offline: {missing}"),
            "run once without `--offline` and `HF_HUB_OFFLINE`, or give a local folder as `path`",
        )
    }

    fn explain(&self, error: &HFError) -> ModelError {
        let id = self.id;
        let local = "or give a local folder as `path`";
        match error {
            _ if is_unknown(error) => ModelError::new(
                format!("the hub has no model `{id}`"),
                "check the name; a private one needs HF_TOKEN",
            ),
            HFError::RevisionNotFound { .. } => ModelError::new(
                format!("`{id}` has no revision `{}`", self.revision),
                "give a branch, a tag or a commit of it",
            ),
            HFError::AuthRequired { .. } | HFError::Forbidden { .. } => ModelError::new(
                format!("the hub does not let you read `{id}`"),
                "accept its terms on its page and set HF_TOKEN",
            ),
            HFError::Request { .. } => ModelError::new(
                format!("the hub cannot be reached for `{id}`: {}", chain(error)),
                format!("check the network and HF_ENDPOINT, {local}"),
            ),
            _ => ModelError::new(
                format!("`{id}` cannot be fetched: {}", chain(error)),
                format!("try again, {local}"),
            ),
        }
    }
}

fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The hub says which of name and revision it does not know in a header, also where it answers 401.
fn is_unknown(error: &HFError) -> bool {
    let context = match error {
        HFError::RepoNotFound { .. } => return true,
        HFError::RevisionNotFound {
            context: Some(context),
            ..
        }
        | HFError::AuthRequired { context } => context,
        _ => return false,
    };
    context.error_code.as_deref() == Some("RepoNotFound")
}

fn is_unreachable(error: &HFError) -> bool {
    match error {
        HFError::Request { .. } | HFError::RateLimited { .. } => true,
        HFError::Http { context } => context.status.is_server_error(),
        _ => false,
    }
}

#[derive(Default)]
struct Counter {
    done: AtomicU64,
    total: AtomicU64,
    /// Bytes by file of the transfers under way.
    files: std::sync::Mutex<std::collections::HashMap<String, u64>>,
}

impl ProgressHandler for Counter {
    fn on_progress(&self, event: &ProgressEvent) {
        let ProgressEvent::Download(event) = event else {
            return;
        };
        match event {
            DownloadEvent::Start { total_bytes, .. } => {
                self.total.fetch_max(*total_bytes, Ordering::Relaxed);
            }
            DownloadEvent::Progress { files } => {
                let Ok(mut known) = self.files.lock() else {
                    return;
                };
                for file in files {
                    let bytes = if file.status == FileStatus::Complete {
                        file.total_bytes
                    } else {
                        file.bytes_completed
                    };
                    known.insert(file.filename.clone(), bytes);
                }
                self.done.store(known.values().sum(), Ordering::Relaxed);
            }
            DownloadEvent::AggregateProgress {
                bytes_completed, ..
            } => {
                self.done.fetch_max(*bytes_completed, Ordering::Relaxed);
            }
            _ => {}
        }
    }
}

/// Runs `work` on a thread and tells `fetching` twice a second how far it is, once bytes are known to come.
fn watch<T: Send>(
    what: &str,
    fetching: &dyn Fn(&str, u64, u64),
    work: impl FnOnce(Arc<Counter>) -> T + Send,
) -> T {
    let counter = Arc::new(Counter::default());
    let (sender, receiver) = mpsc::channel();
    std::thread::scope(|scope| {
        let shared = counter.clone();
        scope.spawn(move || sender.send(work(shared)));
        loop {
            let result = receiver.recv_timeout(Duration::from_millis(500));
            let (done, total) = (
                counter.done.load(Ordering::Relaxed),
                counter.total.load(Ordering::Relaxed),
            );
            if total > 0 {
                fetching(what, done.min(total), total);
            }
            match result {
                Ok(result) => break result,
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    unreachable!("the scope passes a panic on")
                }
            }
        }
    })
}

#[cfg(test)]
mod tests {
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
}
