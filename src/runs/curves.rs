//! Curves: the metrics that nodes reported step by step, as `metrics.jsonl` keeps them.
//!
//! A node found in the cache has the curve of the run that made its result; one that was interrupted and went on has
//! both parts. Which runs these are is told by fingerprints, from files alone, so curves are there while a run is on.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;

use serde_json::Value;

use super::{Run, list};
use crate::engine::NodeStatus;

/// Points by step; what was not a finite number is NaN.
pub type Curve = Vec<(u64, f64)>;

/// Curves by node and metric (`train.fit`, `train/loss`).
pub type Curves = BTreeMap<(String, String), Curve>;

/// All curves of a run; `runs` is the folder of all records.
pub fn curves(runs: &Path, run: &Run) -> std::io::Result<Curves> {
    let mut curves = read(&run.folder)?;
    let mut wanted: Vec<Wanted> = run
        .graph
        .nodes
        .iter()
        .filter_map(|node| Wanted::of(run, &node.name, &curves))
        .collect();
    if wanted.is_empty() {
        return Ok(curves);
    }
    let head = &run.view.head;
    for earlier in list(runs)?
        .into_iter()
        .filter(|earlier| earlier.id < head.id && earlier.pipeline == head.pipeline)
    {
        let folder = runs.join(&earlier.id);
        if !folder.join("metrics.jsonl").exists() {
            continue;
        }
        let earlier = Run::read(&folder)?;
        let points = read(&folder)?;
        wanted.retain_mut(|node| node.take(&earlier, &points, &mut curves));
        if wanted.is_empty() {
            break;
        }
    }
    Ok(curves)
}

/// A node whose curve, or the beginning of it, is in an earlier run.
struct Wanted {
    node: String,
    fingerprint: crate::graph::Fingerprint,
    /// Steps from here on are known; `None` where none is.
    from: Option<u64>,
}

impl Wanted {
    fn of(run: &Run, node: &str, curves: &Curves) -> Option<Self> {
        let from = first_step(curves, node);
        let status = run.view.node(node).map(|node| node.status);
        let wanted = match status {
            Some(NodeStatus::Cached) => true,
            Some(NodeStatus::Skipped) => false,
            // It runs, ran or failed, and went on where an earlier run was interrupted.
            _ => from.is_some_and(|first| first > 1),
        };
        Some(Self {
            node: node.to_owned(),
            fingerprint: run.fingerprint(node)?,
            from,
        })
        .filter(|_| wanted)
    }

    /// Takes what an earlier run knows; says whether still earlier ones may know more.
    fn take(&mut self, earlier: &Run, points: &Curves, curves: &mut Curves) -> bool {
        if earlier.fingerprint(&self.node) != Some(self.fingerprint) {
            return true;
        }
        let first = first_step(points, &self.node);
        for ((node, metric), older) in points.iter().filter(|((node, _), _)| *node == self.node) {
            let curve = curves.entry((node.clone(), metric.clone())).or_default();
            let older = older
                .iter()
                .filter(|(step, _)| self.from.is_none_or(|from| *step < from));
            curve.splice(0..0, older.copied());
        }
        self.from = [self.from, first].into_iter().flatten().min();
        match earlier.view.node(&self.node).map(|node| node.status) {
            Some(NodeStatus::Cached | NodeStatus::Skipped) => true,
            // It finished there: with the whole curve, unless it had been interrupted before.
            Some(NodeStatus::Ran) => self.from.is_some_and(|from| from > 1),
            Some(NodeStatus::Failed) | None => self.from.is_none_or(|from| from > 1),
        }
    }
}

fn first_step(curves: &Curves, node: &str) -> Option<u64> {
    let firsts = curves
        .iter()
        .filter(|((owner, _), _)| owner == node)
        .filter_map(|(_, curve)| curve.first().map(|(step, _)| *step));
    firsts.min()
}

/// The curves in one record. A step that was reported twice counts as it was last; a line that is half written is left out.
fn read(folder: &Path) -> std::io::Result<Curves> {
    let file = match fs_err::File::open(folder.join("metrics.jsonl")) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Curves::new()),
        Err(error) => return Err(error),
    };
    let mut points: BTreeMap<(String, String), BTreeMap<u64, f64>> = BTreeMap::new();
    for line in BufReader::new(file).split(b'\n') {
        let Ok(point) = serde_json::from_slice::<Value>(&line?) else {
            continue;
        };
        let (Some(node), Some(step), Some(values)) = (
            point["node"].as_str(),
            point["step"].as_u64(),
            point["values"].as_object(),
        ) else {
            continue;
        };
        for (metric, value) in values {
            points
                .entry((node.to_owned(), metric.clone()))
                .or_default()
                .insert(step, value.as_f64().unwrap_or(f64::NAN));
        }
    }
    Ok(points
        .into_iter()
        .map(|(name, curve)| (name, curve.into_iter().collect()))
        .collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::digest::Digest;
    use crate::engine::{Event, EventKind};
    use crate::graph::Manifest;
    use crate::runs::{GraphNode, RunGraph};

    fn node(learning_rate: &str) -> GraphNode {
        GraphNode {
            name: "fit".to_owned(),
            stage: "fit".to_owned(),
            op: "train".to_owned(),
            inputs: BTreeMap::new(),
            models: BTreeMap::new(),
            manifest: Manifest {
                layout: 1,
                op: "train".to_owned(),
                op_version: 1,
                params: BTreeMap::from([("learning_rate".to_owned(), learning_rate.to_owned())]),
                files: BTreeMap::new(),
                paths: BTreeMap::from([("data".to_owned(), Digest::of("data"))]),
                models: BTreeMap::new(),
                inputs: BTreeMap::new(),
                seed: 1,
            },
        }
    }

    /// Writes a record of one node that reported these steps; `status` is `None` where it did not end.
    fn record(
        runs: &Path,
        id: &str,
        learning_rate: &str,
        steps: std::ops::Range<u64>,
        status: Option<NodeStatus>,
    ) {
        let folder = runs.join(id);
        fs_err::create_dir_all(&folder).unwrap();
        let graph = RunGraph {
            nodes: vec![node(learning_rate)],
        };
        let head = json!({ "id": id, "pipeline": "p", "profile": null, "state": "finished", "started": "", "seconds": 1.0,
            "path": "", "arguments": [], "cache": "", "exports": {}, "seed": 1, "version": "", "counts": {}, "metrics": {}, "error": null });
        fs_err::write(folder.join("run.json"), head.to_string()).unwrap();
        fs_err::write(
            folder.join("graph.json"),
            serde_json::to_string(&graph).unwrap(),
        )
        .unwrap();
        let finished = status.map(|status| EventKind::NodeFinished {
            node: "fit".to_owned(),
            op: "train".to_owned(),
            status,
            seconds: 1.0,
            fingerprint: Some(graph.nodes[0].manifest.fingerprint()),
            outputs: BTreeMap::new(),
            metrics: BTreeMap::new(),
            error: None,
        });
        let started = EventKind::NodeStarted {
            node: "fit".to_owned(),
            op: "train".to_owned(),
            fingerprint: None,
            reasons: Vec::new(),
        };
        let line = |kind| serde_json::to_string(&Event::now(kind)).unwrap() + "\n";
        let events: String = [Some(started), finished]
            .into_iter()
            .flatten()
            .map(line)
            .collect();
        fs_err::write(folder.join("events.jsonl"), events).unwrap();
        let points: String = steps
            .map(|step| {
                format!("{{\"node\":\"fit\",\"step\":{step},\"values\":{{\"loss\":{step}.5}}}}\n")
            })
            .collect();
        fs_err::write(folder.join("metrics.jsonl"), points + "{\"node\":\"fi").unwrap();
    }

    fn steps(runs: &Path, id: &str) -> Vec<u64> {
        let run = Run::read(&runs.join(id)).unwrap();
        let curves = curves(runs, &run).unwrap();
        let curve = curves.get(&("fit".to_owned(), "loss".to_owned()));
        curve.into_iter().flatten().map(|(step, _)| *step).collect()
    }

    #[test]
    fn a_curve_that_was_interrupted_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let runs = folder.path();
        record(runs, "1", "0.1", 1..5, Some(NodeStatus::Ran));
        // Of the run that died, steps after its last checkpoint were done again.
        record(runs, "2", "0.2", 1..8, None);
        record(runs, "3", "0.3", 1..10, None);
        record(runs, "4", "0.2", 5..9, Some(NodeStatus::Failed));
        record(runs, "5", "0.2", 8..11, Some(NodeStatus::Ran));
        record(runs, "6", "0.2", 1..1, Some(NodeStatus::Cached));
        let whole: Vec<u64> = (1..=10).collect();
        assert_eq!(steps(runs, "5"), whole);
        assert_eq!(steps(runs, "6"), whole);
        assert_eq!(steps(runs, "2"), (1..=7).collect::<Vec<_>>());
        assert_eq!(steps(runs, "1"), (1..=4).collect::<Vec<_>>());
    }
}
