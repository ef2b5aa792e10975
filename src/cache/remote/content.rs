//! A folder of files as the shared cache keeps it: a list of members, whose contents are objects of their own.

use serde::{Deserialize, Serialize};

use crate::cache::objects::{FileKind, FileRecord};
use crate::digest::Digest;

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Member {
    /// Relative, with `/`.
    pub(super) path: String,
    pub(super) kind: FileKind,
    pub(super) size: u64,
    /// Of the content, as [`FileRecord`] has it.
    pub(super) digest: Digest,
    /// Where a link leads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) target: Option<String>,
}

impl Member {
    pub(super) fn of(folder: &std::path::Path, file: &FileRecord) -> std::io::Result<Self> {
        let target = match file.kind {
            FileKind::Link => {
                let target = fs_err::read_link(folder.join(&file.path))?;
                let text = target.to_str().map(str::to_owned);
                Some(text.ok_or_else(|| {
                    std::io::Error::other(format!(
                        "the link `{}` leads to a name that is not UTF-8",
                        file.path
                    ))
                })?)
            }
            _ => None,
        };
        Ok(Self {
            path: file.path.clone(),
            kind: file.kind,
            size: file.size,
            digest: file.digest,
            target,
        })
    }

    pub(super) fn record(&self) -> FileRecord {
        FileRecord {
            path: self.path.clone(),
            kind: self.kind,
            size: self.size,
            mtime: 0,
            digest: self.digest,
        }
    }

    /// Whether it stays in the folder it is written to.
    pub(super) fn is_inside(&self) -> bool {
        use std::path::{Component, Path};
        !self.path.is_empty()
            && Path::new(&self.path)
                .components()
                .all(|component| matches!(component, Component::Normal(_)))
    }

    pub(super) fn has_content(&self) -> bool {
        matches!(self.kind, FileKind::File | FileKind::Executable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_lead_out_are_told() {
        let member = |path: &str| Member {
            path: path.to_owned(),
            kind: FileKind::File,
            size: 0,
            digest: Digest::of(""),
            target: None,
        };
        assert!(member("a/b").is_inside());
        for path in ["", "/etc/x", "../x", "a/../../x"] {
            assert!(!member(path).is_inside(), "{path}");
        }
    }
}
