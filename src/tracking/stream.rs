//! The body of one file-stream request.

use std::collections::BTreeMap;

use serde::Serialize;

/// Lines of one file and the number of the first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Chunk {
    pub offset: u64,
    pub content: Vec<String>,
}

/// Every part may be missing; the empty body is the heartbeat.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Body {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub files: BTreeMap<&'static str, Chunk>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub uploaded: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub complete: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exitcode: Option<i32>,
}

pub const HISTORY: &str = "wandb-history.jsonl";
pub const EVENTS: &str = "wandb-events.jsonl";
pub const SUMMARY: &str = "wandb-summary.json";
pub const CONSOLE: &str = "output.log";

impl Body {
    /// Leaves out a chunk without lines.
    pub fn put(&mut self, file: &'static str, offset: u64, content: Vec<String>) {
        if !content.is_empty() {
            self.files.insert(file, Chunk { offset, content });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies() {
        let text = |body: &Body| serde_json::to_string(body).unwrap();
        let mut body = Body::default();
        body.put(CONSOLE, 3, Vec::new());
        assert_eq!(text(&body), "{}");
        body.put(HISTORY, 3, vec![r#"{"a":NaN}"#.to_owned()]);
        body.uploaded.push("report.html".to_owned());
        (body.complete, body.exitcode) = (Some(true), Some(130));
        assert_eq!(
            text(&body),
            r#"{"files":{"wandb-history.jsonl":{"offset":3,"content":["{\"a\":NaN}"]}},"uploaded":["report.html"],"complete":true,"exitcode":130}"#
        );
    }
}
