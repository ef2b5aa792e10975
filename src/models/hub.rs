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
mod tests;
