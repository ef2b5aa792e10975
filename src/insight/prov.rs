//! A run as W3C PROV-JSON (<https://www.w3.org/submissions/prov-json/>): what was made by what, from what.
//!
//! Contents are entities named by their BLAKE3 digest, so that documents of several runs say the same of the same
//! content. A node is an activity named by its fingerprint; one that was found in the cache has no times, since another
//! run has done it.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value, json};

use crate::config::ArtifactKind;
use crate::digest::Digest;
use crate::engine::{NodeStatus, RunState};
use crate::graph::Manifest;
use crate::runs::{GraphNode, NodeView, Run};

const RUN: &str = "run:run";
const PIPELINE: &str = "run:pipeline.yaml";
const FLOW: &str = "flow:flow";

/// The document of a run, from its record alone. One by a flow that did not record the graph says nothing of nodes.
pub fn document(run: &Run) -> Value {
    let mut document = Document::default();
    document.frame(run);
    // In the order of the graph: what a node reads has been described then.
    let nodes = run.graph.nodes.iter();
    for node in nodes.filter_map(|node| run.view.node(&node.name)) {
        document.node(run, node);
    }
    document.finish(run)
}

/// A name of the document as a value.
fn name(text: &str) -> Value {
    json!({ "$": text, "type": "prov:QUALIFIED_NAME" })
}

fn content(digest: &Digest) -> String {
    format!("blake3:{digest}")
}

/// The records by kind (`entity`, `used`, …) and then by identifier.
#[derive(Default)]
struct Document {
    records: BTreeMap<&'static str, Map<String, Value>>,
}

impl Document {
    fn put(&mut self, kind: &'static str, id: &str, attributes: Value) {
        let records = self.records.entry(kind).or_default();
        records.insert(id.to_owned(), attributes);
    }

    /// A relation, which needs no name of its own.
    fn relate(&mut self, kind: &'static str, attributes: Value) {
        let number = self.records.get(kind).map_or(0, Map::len);
        self.put(kind, &format!("_:{kind}{number}"), attributes);
    }

    /// An entity or activity; what is known by several labels keeps them all.
    fn label(&mut self, kind: &'static str, id: &str, label: &str, attributes: Value) {
        let known = self.records.get_mut(kind).and_then(|all| all.get_mut(id));
        let Some(known) = known else {
            let mut attributes = attributes;
            attributes["prov:label"] = json!([label]);
            return self.put(kind, id, attributes);
        };
        if let Value::Array(labels) = &mut known["prov:label"]
            && !labels.iter().any(|other| other == label)
        {
            labels.push(json!(label));
        }
    }

    /// The run itself, its pipeline, and flow.
    fn frame(&mut self, run: &Run) {
        let head = &run.view.head;
        let state = match head.state {
            RunState::Running => "running",
            RunState::Finished => "finished",
            RunState::Failed => "failed",
            RunState::Interrupted => "interrupted",
        };
        let mut activity = json!({
            "prov:label": head.id, "prov:type": name("flow:Run"), "prov:startTime": head.started,
            "flow:state": state, "flow:seed": head.seed, "flow:command": format!("flow {}", head.arguments.join(" ")),
        });
        let started = head.started.parse::<Timestamp>().ok();
        let length = head
            .seconds
            .and_then(|seconds| SignedDuration::try_from_secs_f64(seconds).ok());
        if let (Some(started), Some(length)) = (started, length)
            && let Ok(ended) = started.checked_add(length)
        {
            activity["prov:endTime"] = json!(ended.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string());
        }
        if let Some(profile) = &head.profile {
            activity["flow:profile"] = json!(profile);
        }
        self.put("activity", RUN, activity);
        self.put(
            "entity",
            PIPELINE,
            json!({ "prov:label": head.path, "prov:type": name("prov:Plan") }),
        );
        self.put(
            "agent",
            FLOW,
            json!({ "prov:label": format!("flow {}", head.version), "prov:type": name("prov:SoftwareAgent"), "flow:version": head.version }),
        );
        self.associate(RUN);
    }

    fn associate(&mut self, activity: &str) {
        self.relate(
            "wasAssociatedWith",
            json!({ "prov:activity": activity, "prov:agent": FLOW, "prov:plan": PIPELINE }),
        );
    }

    fn node(&mut self, run: &Run, node: &NodeView) {
        // A node that was skipped did nothing.
        let Some(fingerprint) = node.fingerprint else {
            return;
        };
        let activity = format!("node:{fingerprint}");
        let planned = run.graph.node(&node.name);
        let manifest = planned.and_then(|node| run.manifest(node));
        let mut attributes = json!({ "prov:type": name("flow:Node"), "flow:op": node.op, "flow:status": node.status });
        if node.status != NodeStatus::Cached {
            for (key, time) in [
                ("prov:startTime", &node.started),
                ("prov:endTime", &node.ended),
            ] {
                if let Some(time) = time {
                    attributes[key] = json!(time);
                }
            }
            self.relate(
                "wasStartedBy",
                json!({ "prov:activity": activity, "prov:starter": RUN }),
            );
        }
        if let Some(manifest) = &manifest {
            attributes["flow:opVersion"] = json!(manifest.op_version);
            attributes["flow:seed"] = json!(manifest.seed);
            let params: Map<String, Value> = manifest
                .params
                .iter()
                .map(|(name, text)| {
                    (
                        name.clone(),
                        serde_json::from_str(text).unwrap_or(json!(text)),
                    )
                })
                .collect();
            // A value of PROV is no object, and a list would be a set.
            attributes["flow:params"] = json!(Value::Object(params).to_string());
        }
        if let Some(error) = &node.error {
            attributes["flow:error"] = json!(error);
        }
        self.label("activity", &activity, &node.name, attributes);
        self.associate(&activity);
        let used = match (planned, &manifest) {
            (Some(planned), Some(manifest)) => self.used(&activity, planned, manifest),
            _ => Vec::new(),
        };
        for output in &node.outputs {
            let id = content(&output.digest);
            let kind = match output.kind {
                ArtifactKind::Table => "flow:Table",
                ArtifactKind::Files => "flow:Files",
            };
            let mut attributes = json!({ "prov:type": name(kind), "flow:bytes": output.bytes });
            if let Some(rows) = output.rows {
                attributes["flow:rows"] = json!(rows);
            }
            let label = run.short_name(&format!("{}.{}", node.name, output.name));
            self.label("entity", &id, &label, attributes);
            let mut made =
                json!({ "prov:entity": id, "prov:activity": activity, "prov:role": output.name });
            if let (NodeStatus::Ran, Some(time)) = (node.status, &node.ended) {
                made["prov:time"] = json!(time);
            }
            self.relate("wasGeneratedBy", made);
            // What a node gives is a function of all that it reads; one that gives back what it got derives nothing.
            for source in used.iter().filter(|source| **source != id) {
                self.relate(
                    "wasDerivedFrom",
                    json!({ "prov:generatedEntity": id, "prov:usedEntity": source, "prov:activity": activity }),
                );
            }
        }
    }

    /// All that a node reads; their identifiers.
    fn used(&mut self, activity: &str, node: &GraphNode, manifest: &Manifest) -> Vec<String> {
        let groups = [
            ("inputs", "flow:Table", &manifest.inputs),
            ("paths", "flow:Data", &manifest.paths),
            ("models", "flow:Model", &manifest.models),
            ("files", "flow:StageFile", &manifest.files),
        ];
        let mut used = Vec::new();
        for (group, kind, digests) in groups {
            for (port, digest) in digests {
                let id = content(digest);
                // An input was made by a node before, which has said what it is.
                if group != "inputs" {
                    let own = format!("{}.{port}", node.name);
                    let label = node.models.get(port).filter(|_| group == "models");
                    let attributes = json!({ "prov:type": name(kind) });
                    self.label("entity", &id, label.unwrap_or(&own), attributes);
                }
                self.relate(
                    "used",
                    json!({ "prov:activity": activity, "prov:entity": id, "prov:role": format!("{group}.{port}") }),
                );
                used.push(id);
            }
        }
        used
    }

    fn finish(self, run: &Run) -> Value {
        let mut document = json!({ "prefix": {
            "blake3": "urn:blake3:",
            "flow": "urn:flow:",
            "node": "urn:flow:fingerprint:",
            "run": format!("urn:flow:run:{}:", run.id()),
        } });
        for (kind, records) in self.records {
            document[kind] = Value::Object(records);
        }
        document
    }
}
