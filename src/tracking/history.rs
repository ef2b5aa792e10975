//! Which events are worth a row of history, and what is in it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use super::number::token;
use super::row::Row;
use crate::engine::{EventKind, NodeStatus};

/// How often a node's progress is worth a row.
const PROGRESS: Duration = Duration::from_secs(5);

/// Turns events into points, and knows which points there are already: a node that goes on from its last checkpoint, in
/// this process or another, says again what it said before, and that is no second row.
#[derive(Debug, Default)]
pub struct History {
    /// The last place on each series' axis.
    seen: HashMap<String, u64>,
    /// What a node's curves are called, by node.
    names: HashMap<String, Names>,
    /// Of the nodes that run now.
    fingerprints: HashMap<String, String>,
    told: HashMap<String, Instant>,
    /// Nodes that draw curves; their progress is in there.
    curves: HashSet<String>,
}

#[derive(Debug, Clone, Default)]
struct Names {
    /// In front of each metric; empty where the op is there only once.
    prefix: String,
    op: String,
}

/// A row without its place in the journal.
#[derive(Debug, Clone, PartialEq)]
pub struct Point {
    pub series: String,
    pub at: u64,
    pub fields: BTreeMap<String, String>,
}

impl History {
    /// `nodes`: name and op of each. Metrics are called as the op calls them (`train/loss`), with the node's name in front
    /// where several nodes of the pipeline have the same op.
    pub fn new<'a>(nodes: impl Iterator<Item = (&'a str, &'a str)> + Clone) -> Self {
        let mut counts: HashMap<&str, u32> = HashMap::new();
        for (_, op) in nodes.clone() {
            *counts.entry(op).or_default() += 1;
        }
        let names = nodes.map(|(node, op)| {
            let prefix = match counts[op] {
                1 => String::new(),
                _ => format!("{node}/"),
            };
            let op = op.to_owned();
            (node.to_owned(), Names { prefix, op })
        });
        Self {
            names: names.collect(),
            ..Self::default()
        }
    }

    /// A row that the journal has already.
    pub fn remember(&mut self, row: &Row) {
        let last = self.seen.entry(row.series.clone()).or_insert(row.at);
        *last = (*last).max(row.at);
    }

    /// Metrics of an event that have an axis of their own, and the axis.
    pub fn axis(&self, event: &EventKind) -> Option<(Vec<String>, String)> {
        let EventKind::Metric { node, values, .. } = event else {
            return None;
        };
        let names = self.names(node);
        let metrics = values
            .keys()
            .map(|name| format!("{}{name}", names.prefix))
            .collect();
        Some((metrics, format!("{}{}/step", names.prefix, names.op)))
    }

    /// The point an event is worth, if it is a new one.
    pub fn point(&mut self, event: &EventKind, now: Instant) -> Option<Point> {
        let point = match event {
            EventKind::NodeStarted {
                node, fingerprint, ..
            } => {
                let fingerprint = fingerprint.map(|fingerprint| fingerprint.0.short());
                self.fingerprints
                    .insert(node.clone(), fingerprint.unwrap_or_default());
                return None;
            }
            EventKind::Metric { node, step, values } => {
                self.curves.insert(node.clone());
                let said = values.keys().map(String::as_str).collect::<Vec<_>>();
                let (metrics, axis) = self.axis(event)?;
                let mut fields: BTreeMap<_, _> = metrics
                    .into_iter()
                    .zip(values.values().map(|value| token(*value)))
                    .collect();
                fields.insert(axis, step.to_string());
                Point {
                    series: self.series(node, &said.join(",")),
                    at: *step,
                    fields,
                }
            }
            EventKind::Progress { node, progress } => {
                if self.curves.contains(node) || !self.names.contains_key(node) {
                    return None;
                }
                let is_end = progress.total > 0 && progress.done >= progress.total;
                let told = self.told.get(node);
                if !is_end && told.is_some_and(|told| now.duration_since(*told) < PROGRESS) {
                    return None;
                }
                self.told.insert(node.clone(), now);
                Point {
                    series: self.series(node, "progress"),
                    at: progress.done,
                    fields: [(format!("progress/{node}"), token(progress.done as f64))].into(),
                }
            }
            EventKind::NodeFinished {
                node,
                status: status @ (NodeStatus::Ran | NodeStatus::Cached),
                seconds,
                fingerprint,
                outputs,
                metrics,
                ..
            } => {
                let mut fields = BTreeMap::new();
                for (name, value) in metrics {
                    fields.insert(format!("{node}/{name}"), token(*value));
                }
                for (name, artifact) in outputs {
                    let Some(rows) = artifact.rows else { continue };
                    let key = if outputs.len() == 1 {
                        format!("{node}/rows")
                    } else {
                        format!("{node}/{name}/rows")
                    };
                    fields.insert(key, rows.to_string());
                }
                if *status == NodeStatus::Ran {
                    fields.insert(format!("{node}/seconds"), super::number::seconds(*seconds));
                }
                if fields.is_empty() {
                    return None;
                }
                let fingerprint = fingerprint.map(|fingerprint| fingerprint.0.short());
                Point {
                    series: format!("{node}@{}:end", fingerprint.unwrap_or_default()),
                    at: 0,
                    fields,
                }
            }
            _ => return None,
        };
        let last = self.seen.get(&point.series);
        if last.is_some_and(|last| point.at <= *last) {
            return None;
        }
        self.seen.insert(point.series.clone(), point.at);
        Some(point)
    }

    fn names(&self, node: &str) -> Names {
        self.names.get(node).cloned().unwrap_or_else(|| Names {
            prefix: format!("{node}/"),
            op: "node".to_owned(),
        })
    }

    fn series(&self, node: &str, what: &str) -> String {
        let fingerprint = self.fingerprints.get(node).map_or("", String::as_str);
        format!("{node}@{fingerprint}:{what}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Artifact;
    use crate::config::ArtifactKind;
    use crate::digest::Digest;
    use crate::engine::Progress;
    use crate::graph::Fingerprint;

    fn started(node: &str, content: &str) -> EventKind {
        EventKind::NodeStarted {
            node: node.into(),
            op: "train".into(),
            fingerprint: Some(Fingerprint(Digest::of(content))),
            reasons: Vec::new(),
        }
    }

    fn metric(node: &str, step: u64, values: &[(&str, f64)]) -> EventKind {
        let values = values
            .iter()
            .map(|(name, value)| ((*name).to_owned(), *value));
        EventKind::Metric {
            node: node.into(),
            step,
            values: values.collect(),
        }
    }

    fn progress(node: &str, done: u64) -> EventKind {
        let progress = Progress {
            done,
            total: 100,
            unit: "rows".into(),
            note: String::new(),
        };
        EventKind::Progress {
            node: node.into(),
            progress,
        }
    }

    fn history() -> History {
        let nodes = [
            ("tune.fit", "train"),
            ("a.judge", "judge"),
            ("b.judge", "judge"),
        ];
        History::new(nodes.into_iter())
    }

    #[test]
    fn a_curve_has_each_step_once() {
        let mut history = history();
        let now = Instant::now();
        history.point(&started("tune.fit", "x"), now);
        let loss = |step| metric("tune.fit", step, &[("train/loss", 0.5), ("train/lr", 1e-5)]);
        let point = history.point(&loss(1), now).unwrap();
        assert_eq!(
            point.fields,
            [
                ("train/loss", "0.5"),
                ("train/lr", "0.00001"),
                ("train/step", "1")
            ]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into()
        );
        assert!(history.point(&loss(2), now).is_some());
        // At the same step, from the same node, but another thing.
        assert!(
            history
                .point(&metric("tune.fit", 2, &[("eval/loss", f64::NAN)]), now)
                .is_some()
        );
        // Resumed from a checkpoint after step 1.
        history.point(&started("tune.fit", "x"), now);
        assert_eq!(history.point(&loss(2), now), None);
        assert!(history.point(&loss(3), now).is_some());
        // Other content: another curve.
        history.point(&started("tune.fit", "y"), now);
        assert!(history.point(&loss(1), now).is_some());
    }

    #[test]
    fn what_the_journal_has_is_no_new_point() {
        let now = Instant::now();
        let mut before = history();
        before.point(&started("tune.fit", "x"), now);
        let point = before
            .point(&metric("tune.fit", 7, &[("train/loss", 1.0)]), now)
            .unwrap();
        let mut after = history();
        after.remember(&Row {
            series: point.series,
            at: point.at,
            fields: point.fields,
        });
        after.point(&started("tune.fit", "x"), now);
        assert_eq!(
            after.point(&metric("tune.fit", 7, &[("train/loss", 1.0)]), now),
            None
        );
        assert!(
            after
                .point(&metric("tune.fit", 8, &[("train/loss", 1.0)]), now)
                .is_some()
        );
    }

    #[test]
    fn names_are_told_apart_where_an_op_is_there_twice() {
        let history = history();
        assert_eq!(
            history.axis(&metric("tune.fit", 1, &[("eval/loss", 1.0)])),
            Some((vec!["eval/loss".into()], "train/step".into()))
        );
        assert_eq!(
            history.axis(&metric("a.judge", 1, &[("agreement", 1.0)])),
            Some((
                vec!["a.judge/agreement".into()],
                "a.judge/judge/step".into()
            ))
        );
    }

    #[test]
    fn progress_is_told_once_in_a_while_and_at_the_end() {
        let mut history = history();
        let now = Instant::now();
        assert!(history.point(&progress("a.judge", 1), now).is_some());
        assert_eq!(history.point(&progress("a.judge", 2), now), None);
        let later = now + PROGRESS;
        let point = history.point(&progress("a.judge", 3), later).unwrap();
        assert_eq!(point.fields["progress/a.judge"], "3");
        assert!(history.point(&progress("a.judge", 100), later).is_some());
        assert_eq!(history.point(&progress("a.judge", 100), later), None);
        // A download, and a node that draws curves.
        assert_eq!(
            history.point(&progress("https://example.org", 1), now),
            None
        );
        history.point(&metric("tune.fit", 1, &[("train/loss", 1.0)]), now);
        assert_eq!(history.point(&progress("tune.fit", 1), now), None);
    }

    #[test]
    fn a_node_that_ends_tells_its_counts_once() {
        let mut history = history();
        let artifact = |rows| Artifact {
            kind: ArtifactKind::Table,
            digest: Digest::of("x"),
            rows,
            bytes: 1,
        };
        let end = |status| EventKind::NodeFinished {
            node: "a.judge".into(),
            op: "judge".into(),
            status,
            seconds: 1.5,
            fingerprint: Some(Fingerprint(Digest::of("f"))),
            outputs: [
                ("kept".to_owned(), artifact(Some(12))),
                ("model".to_owned(), artifact(None)),
            ]
            .into(),
            metrics: [("yes".to_owned(), 12.0)].into(),
            error: None,
        };
        let now = Instant::now();
        assert_eq!(history.point(&end(NodeStatus::Failed), now), None);
        let point = history.point(&end(NodeStatus::Ran), now).unwrap();
        assert_eq!(
            super::super::row::object(&point.fields),
            r#"{"a.judge/kept/rows":12,"a.judge/seconds":1.500,"a.judge/yes":12}"#
        );
        assert_eq!(history.point(&end(NodeStatus::Cached), now), None);
    }
}
