//! A file from a URL, kept in `FLOW_HOME/downloads` once its content has been checked.
//!
//! Called by the engine before a run, for data that is not at its path; never asks again for what is there.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use fs_err as fs;

use crate::cache::archive_digest;
use crate::digest::Digest;

const ATTEMPTS: u32 = 3;

#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    #[error("`{url}` was never downloaded, and the run is offline")]
    Offline { url: String },
    #[error("`{url}` cannot be downloaded: {message}")]
    Failed { url: String, message: String },
    /// Also for data that was there from the start.
    #[error("`{what}` has the digest {found}, not {expected}")]
    Mismatch {
        what: String,
        found: Digest,
        expected: Digest,
    },
    #[error("`{}` cannot be kept: {message}", .path.display())]
    Kept { path: PathBuf, message: String },
}

impl DownloadError {
    /// The next step.
    pub fn help(&self) -> String {
        match self {
            Self::Offline { .. } => "run once without `--offline`, or put the file where `path` says".to_owned(),
            Self::Failed { .. } => "check the network and the address, or put the file where `path` says".to_owned(),
            Self::Mismatch { .. } => "it is not the data that the pipeline was written for; correct `digest` if that is meant".to_owned(),
            Self::Kept { .. } => "check the disk and the permissions of `FLOW_HOME`".to_owned(),
        }
    }
}

/// Gives the file of `url`, downloading it the first time.
///
/// `expected` is compared with [`content_digest`] before the file is kept; `fetching` is told what is fetched, with bytes
/// done and in total (0: not known).
pub fn fetch(
    url: &str,
    expected: Option<Digest>,
    home: &Path,
    offline: bool,
    fetching: &dyn Fn(&str, u64, u64),
) -> Result<PathBuf, DownloadError> {
    let path = place(url, home);
    if path.is_file() {
        return Ok(path);
    }
    if offline {
        return Err(DownloadError::Offline {
            url: url.to_owned(),
        });
    }
    let folder = path.parent().unwrap_or(home);
    let kept = |error: std::io::Error| DownloadError::Kept {
        path: path.clone(),
        message: error.to_string(),
    };
    fs::create_dir_all(folder).map_err(kept)?;
    // The suffix stays, as the digest depends on the kind of file.
    let suffix = path
        .extension()
        .map(|extension| format!(".{}", extension.to_string_lossy()))
        .unwrap_or_default();
    let mut attempt = 1;
    let file = loop {
        let mut file = tempfile::Builder::new()
            .prefix(".part-")
            .suffix(&suffix)
            .tempfile_in(folder)
            .map_err(kept)?;
        match get(url, file.as_file_mut(), fetching) {
            Ok(()) => break file,
            Err(failure) if failure.passing && attempt < ATTEMPTS => {
                std::thread::sleep(Duration::from_millis(500) * attempt);
                attempt += 1;
            }
            Err(failure) => {
                return Err(DownloadError::Failed {
                    url: url.to_owned(),
                    message: failure.message,
                });
            }
        }
    };
    if let Some(expected) = expected {
        check(file.path(), url, expected)?;
    }
    file.as_file().sync_all().map_err(kept)?;
    file.persist(&path).map_err(|error| kept(error.error))?;
    Ok(path)
}

/// Where the file of `url` is kept: its own name, after a few digits that tell URLs apart.
fn place(url: &str, home: &Path) -> PathBuf {
    let bare = url.split(['?', '#']).next().unwrap_or(url);
    let name: String = bare
        .rsplit('/')
        .next()
        .unwrap_or_default()
        .chars()
        .filter(|c| c.is_alphanumeric() || "._-".contains(*c))
        .collect();
    home.join("downloads")
        .join(format!("{}-{name}", Digest::of(url).short()))
}

/// Fails unless `path` has the digest `expected`; `what` is how the message calls it.
pub fn check(path: &Path, what: &str, expected: Digest) -> Result<(), DownloadError> {
    let found = content_digest(path).map_err(|message| DownloadError::Failed {
        url: what.to_owned(),
        message,
    })?;
    if found == expected {
        Ok(())
    } else {
        Err(DownloadError::Mismatch {
            what: what.to_owned(),
            found,
            expected,
        })
    }
}

/// What pipelines pin: over the members of a zip archive, as containers of the same files differ; else of the bytes.
pub fn content_digest(path: &Path) -> Result<Digest, String> {
    if path
        .extension()
        .is_some_and(|extension| extension.eq_ignore_ascii_case("zip"))
    {
        return archive_digest(path).map_err(|error| error.to_string());
    }
    let mut hasher = blake3::Hasher::new();
    hasher
        .update_mmap_rayon(path)
        .map_err(|error| error.to_string())?;
    Ok(hasher.finalize().into())
}

struct Failure {
    message: String,
    /// Trying again may help.
    passing: bool,
}

fn get(
    url: &str,
    into: &mut std::fs::File,
    fetching: &dyn Fn(&str, u64, u64),
) -> Result<(), Failure> {
    let failed = |error: reqwest::Error| Failure {
        passing: !error.is_builder() && !error.is_redirect(),
        message: chain(&error),
    };
    let client = reqwest::blocking::Client::builder()
        .user_agent(concat!("flow/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(Duration::from_secs(15))
        .timeout(None)
        .build()
        .map_err(failed)?;
    let mut response = client.get(url).send().map_err(failed)?;
    let status = response.status();
    if !status.is_success() {
        let passing = status.is_server_error() || matches!(status.as_u16(), 408 | 429);
        return Err(Failure {
            message: format!("the server answers {status}"),
            passing,
        });
    }
    let total = response.content_length().unwrap_or(0);
    let mut buffer = vec![0; 1 << 16];
    let (mut done, mut told) = (0_u64, 0_u64);
    fetching(url, 0, total);
    loop {
        let count = response.read(&mut buffer).map_err(|error| Failure {
            message: chain(&error),
            passing: true,
        })?;
        if count == 0 {
            break;
        }
        into.write_all(&buffer[..count]).map_err(|error| Failure {
            message: error.to_string(),
            passing: false,
        })?;
        done += count as u64;
        if done - told >= 1 << 20 {
            told = done;
            fetching(url, done, total);
        }
    }
    fetching(url, done, total.max(done));
    Ok(())
}

/// The error with its causes, the last of which says what happened.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let more = cause.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::net::TcpListener;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Answers each request with the next of `answers` (the last one again and again); gives the address and a count.
    fn server(answers: &'static [&'static str]) -> (String, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let count = Arc::new(AtomicUsize::new(0));
        let seen = count.clone();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                let index = seen.fetch_add(1, Ordering::SeqCst);
                BufReader::new(&stream)
                    .lines()
                    .map_while(Result::ok)
                    .take_while(|line| !line.is_empty())
                    .for_each(drop);
                let _ = stream.write_all(answers[index.min(answers.len() - 1)].as_bytes());
            }
        });
        (address, count)
    }

    const GOOD: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello";
    const CUT: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhel";
    const MISSING: &str =
        "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

    fn quiet(_: &str, _: u64, _: u64) {}

    fn files(home: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(home.join("downloads"))
            .map(|entries| entries.map(|entry| entry.unwrap().file_name()));
        entries
            .map(|names| names.map(|name| name.into_string().unwrap()).collect())
            .unwrap_or_default()
    }

    #[test]
    fn a_cut_transfer_is_tried_again_and_a_whole_one_kept() {
        let home = tempfile::tempdir().unwrap();
        let (address, count) = server(&[CUT, GOOD]);
        let url = format!("{address}/data/rows.txt?raw=1");
        let path = fetch(&url, Some(Digest::of("hello")), home.path(), false, &quiet).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "hello");
        assert!(path.to_string_lossy().ends_with("-rows.txt"));
        assert_eq!(fetch(&url, None, home.path(), true, &quiet).unwrap(), path);
        assert_eq!(
            (count.load(Ordering::SeqCst), files(home.path()).len()),
            (2, 1)
        );
    }

    #[test]
    fn the_wrong_content_is_refused_and_not_kept() {
        let home = tempfile::tempdir().unwrap();
        let (address, _) = server(&[GOOD]);
        let error = fetch(
            &format!("{address}/a.txt"),
            Some(Digest::of("other")),
            home.path(),
            false,
            &quiet,
        )
        .unwrap_err();
        assert!(matches!(error, DownloadError::Mismatch { .. }), "{error}");
        assert!(files(home.path()).is_empty());
    }

    #[test]
    fn what_cannot_be_had_is_said_in_one_line() {
        let home = tempfile::tempdir().unwrap();
        let (address, count) = server(&[MISSING]);
        let error = |offline| {
            fetch(
                &format!("{address}/a.txt"),
                None,
                home.path(),
                offline,
                &quiet,
            )
            .unwrap_err()
            .to_string()
            .replace(&address, "http://x")
        };
        insta::assert_snapshot!(error(false), @"`http://x/a.txt` cannot be downloaded: the server answers 404 Not Found");
        assert_eq!(
            count.load(Ordering::SeqCst),
            1,
            "a missing file stays missing"
        );
        insta::assert_snapshot!(error(true), @"`http://x/a.txt` was never downloaded, and the run is offline");
    }
}
