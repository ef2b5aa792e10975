//! `run.json` in the journal: which run it is to the server, and what is said about it as a whole.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::digest::Digest;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Head {
    /// The run's id at the server: that of the flow run that began it.
    pub id: String,
    pub name: String,
    pub base_url: String,
    /// As asked for; the server's answer is in `sent.json`.
    pub entity: Option<String>,
    pub project: String,
    #[serde(default)]
    pub group: Option<String>,
    #[serde(default)]
    pub job_type: Option<String>,
    /// What the run was asked to do. A later run that asks for the same continues this one, unless it has finished.
    pub request: Digest,
    /// Unix seconds.
    pub started: f64,
    /// How many flow runs have written here.
    pub attempts: u32,
    /// Config by key.
    pub config: Map<String, Value>,
    /// Metrics that have an axis of their own, and which.
    pub axes: BTreeMap<String, String>,
    /// `None` while the run is on, and for one that died.
    pub exit_code: Option<i32>,
}

impl Head {
    pub fn read(folder: &Path) -> std::io::Result<Self> {
        Ok(serde_json::from_slice(&fs_err::read(
            folder.join("run.json"),
        )?)?)
    }

    pub fn write(&self, folder: &Path) -> std::io::Result<()> {
        crate::atomic::write_durable(&folder.join("run.json"), &serde_json::to_vec_pretty(self)?)
    }

    /// Whether there is nothing left to continue.
    pub fn is_finished(&self) -> bool {
        self.exit_code == Some(0)
    }

    /// The config as the server takes it: each value wrapped, and the declared metrics under `_wandb`.
    pub fn config_document(&self) -> Value {
        let wrapped = self
            .config
            .iter()
            .map(|(key, value)| (key.clone(), json!({ "value": value })));
        let mut document: Map<String, Value> = wrapped.collect();
        // Without `t`, whatever is in it, W&B's own client takes the run for one that never started.
        let own = json!({ "t": { "3": [] }, "m": self.declared_metrics() });
        document.insert("_wandb".to_owned(), json!({ "value": own }));
        Value::Object(document)
    }

    /// In the numbering of W&B's `MetricRecord`: 1 name, 5 place of the step metric (from 1), 6 options (1 in step with it,
    /// 3 declared by the user), 7 summary kinds.
    fn declared_metrics(&self) -> Vec<Value> {
        let axes = self.axes_in_order();
        let place = |axis: &str| axes.iter().position(|known| *known == axis).unwrap_or(0) + 1;
        let declared = axes
            .iter()
            .map(|axis| json!({ "1": axis, "6": [3], "7": [] }));
        let metrics = self
            .axes
            .iter()
            .map(|(metric, axis)| json!({ "1": metric, "5": place(axis), "6": [1, 3], "7": [] }));
        declared.chain(metrics).collect()
    }

    /// The axes, each once.
    pub fn axes_in_order(&self) -> Vec<&str> {
        let mut axes: Vec<&str> = self.axes.values().map(String::as_str).collect();
        axes.sort_unstable();
        axes.dedup();
        axes
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn head() -> Head {
        Head {
            id: "20261124-001835-3fa2".into(),
            name: "first".into(),
            base_url: "http://127.0.0.1:9".into(),
            entity: None,
            project: "p".into(),
            group: None,
            job_type: None,
            request: Digest::of("request"),
            started: 1_795_455_344.5,
            attempts: 1,
            config: Map::from_iter([("seed".to_owned(), json!(7))]),
            axes: BTreeMap::new(),
            exit_code: None,
        }
    }

    #[test]
    fn config_is_wrapped_and_declares_axes() {
        let mut head = head();
        for metric in ["train/loss", "eval/loss"] {
            head.axes.insert(metric.to_owned(), "train/step".to_owned());
        }
        let expected = json!({
            "seed": { "value": 7 },
            "_wandb": { "value": { "t": { "3": [] }, "m": [
                { "1": "train/step", "6": [3], "7": [] },
                { "1": "eval/loss", "5": 1, "6": [1, 3], "7": [] },
                { "1": "train/loss", "5": 1, "6": [1, 3], "7": [] },
            ] } },
        });
        assert_eq!(head.config_document(), expected);
    }

    #[test]
    fn a_head_comes_back_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let head = head();
        head.write(folder.path()).unwrap();
        assert_eq!(Head::read(folder.path()).unwrap(), head);
    }
}
