//! `sent.json` in the journal: what the server has acknowledged.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;

use reqwest::Url;
use serde::{Deserialize, Serialize};

use super::settings::base_url;
use crate::digest::Digest;

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Sent {
    /// The server all this is about.
    pub base_url: String,
    /// As the server names them.
    pub entity: Option<String>,
    pub project: Option<String>,
    pub storage_id: Option<String>,
    /// Lines acknowledged of history, system metrics and console.
    pub history: u64,
    pub system: u64,
    pub console: u64,
    /// Of the config document the server has.
    pub config: Option<Digest>,
    /// Run files the server has, by name.
    pub files: BTreeMap<String, Digest>,
    /// Run files the server does not want, and what it said.
    pub left_out: BTreeMap<String, String>,
    /// The attempt whose end the server knows of.
    pub completed: Option<u32>,
    /// Why nothing more is sent, where the server refused.
    pub refused: Option<String>,
}

impl Sent {
    /// What `base_url` has of the run in `folder`; another server has nothing.
    pub fn read(folder: &Path, base_url: &Url) -> std::io::Result<Self> {
        let fresh = || Self {
            base_url: base_url.to_string(),
            ..Self::default()
        };
        match fs_err::read(folder.join("sent.json")) {
            Ok(bytes) => {
                let sent: Self = serde_json::from_slice(&bytes)?;
                Ok(if sent.base_url == base_url.as_str() {
                    sent
                } else {
                    fresh()
                })
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(fresh()),
            Err(error) => Err(error),
        }
    }

    pub fn write(&self, folder: &Path) -> std::io::Result<()> {
        crate::atomic::write_durable(&folder.join("sent.json"), &serde_json::to_vec_pretty(self)?)
    }

    /// The run's page, once the server has named its place. W&B's own service shows pages on another host than it takes data.
    pub fn page(&self, run: &str) -> Option<String> {
        let mut url = base_url(&self.base_url, "sent.json").ok()?;
        if url.host_str() == Some("api.wandb.ai") {
            url.set_host(Some("wandb.ai")).ok()?;
        }
        let (entity, project) = (self.entity.as_deref()?, self.project.as_deref()?);
        url.path_segments_mut()
            .ok()?
            .pop_if_empty()
            .extend([entity, project, "runs", run]);
        Some(url.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_server_has_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (here, there) = (
            base_url("http://127.0.0.1:9/", "").unwrap(),
            base_url("https://api.wandb.ai", "").unwrap(),
        );
        let mut sent = Sent::read(folder.path(), &here).unwrap();
        sent.history = 12;
        sent.write(folder.path()).unwrap();
        assert_eq!(Sent::read(folder.path(), &here).unwrap().history, 12);
        assert_eq!(Sent::read(folder.path(), &there).unwrap().history, 0);
    }

    #[test]
    fn pages() {
        let page = |address: &str| {
            let sent = Sent {
                base_url: base_url(address, "").unwrap().to_string(),
                entity: Some("me".into()),
                project: Some("q & a".into()),
                ..Sent::default()
            };
            sent.page("r1").unwrap()
        };
        assert_eq!(
            page("https://api.wandb.ai"),
            "https://wandb.ai/me/q%20&%20a/runs/r1"
        );
        assert_eq!(
            page("http://127.0.0.1:8080/"),
            "http://127.0.0.1:8080/me/q%20&%20a/runs/r1"
        );
    }
}
