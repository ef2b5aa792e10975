//! Run files: asked for a place, put there, and named to the file stream afterwards (by the sender).

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use fs_err as fs;

use super::client::Client;
use super::failure::Failure;
use super::graphql;
use super::head::Head;
use super::journal::FILES;
use super::sent::Sent;
use crate::digest::Digest;

/// All run files of a journal, by name (`train/adapter_config.json`).
pub fn all(folder: &Path) -> io::Result<BTreeMap<String, Vec<u8>>> {
    let mut files = BTreeMap::new();
    let root = folder.join(FILES);
    let mut pending = vec![root.clone()];
    while let Some(folder) = pending.pop() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() {
                pending.push(path);
            } else if let Ok(name) = path.strip_prefix(&root) {
                files.insert(name.to_string_lossy().into_owned(), fs::read(&path)?);
            }
        }
    }
    Ok(files)
}

/// Names and contents the server does not have yet.
pub fn missing(
    folder: &Path,
    sent: &Sent,
    uploaded: &[(String, Digest)],
) -> io::Result<BTreeMap<String, Vec<u8>>> {
    let mut files = all(folder)?;
    files.retain(|name, content| {
        let digest = Digest::of(&*content);
        let is_told = sent.files.get(name) == Some(&digest);
        let is_there = uploaded
            .iter()
            .any(|(known, other)| known == name && *other == digest);
        !is_told && !is_there && !sent.left_out.contains_key(name)
    });
    Ok(files)
}

/// Uploads what is missing; what the server does not want is noted in `sent` and left out, which is no reason to stop.
pub fn upload(
    client: &Client,
    head: &Head,
    sent: &mut Sent,
    folder: &Path,
    uploaded: &[(String, Digest)],
) -> Result<Vec<(String, Digest)>, Failure> {
    let mut missing = missing(folder, sent, uploaded)?;
    let names: Vec<&str> = missing.keys().map(String::as_str).collect();
    let places = match graphql::places(client, head, sent, &names) {
        Err(Failure::Refused(why)) => {
            sent.left_out
                .extend(missing.into_keys().map(|name| (name, why.clone())));
            return Ok(Vec::new());
        }
        other => other?,
    };
    let mut done = Vec::new();
    for place in places.files {
        let Some(content) = missing.remove(&place.name) else {
            continue;
        };
        let digest = Digest::of(&content);
        let result = match &place.upload_url {
            Some(url) => client.upload(url, &places.upload_headers, content),
            None => Err(Failure::Refused(
                "the server gives no place for it".to_owned(),
            )),
        };
        match result {
            Ok(()) => done.push((place.name, digest)),
            Err(Failure::Refused(why) | Failure::TooLarge(why)) => {
                sent.left_out.insert(place.name, why);
            }
            // Those that are there already are put there again with the rest: harmless.
            Err(failure) => return Err(failure),
        }
    }
    let why = "the server names no place for it";
    sent.left_out
        .extend(missing.into_keys().map(|name| (name, why.to_owned())));
    Ok(done)
}
