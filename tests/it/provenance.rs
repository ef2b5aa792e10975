//! `flow export --prov`: where everything came from, against the record and the tables.

use serde_json::Value;

use crate::support::{Project, text_of};

fn document(project: &Project, run: &str, file: &str) -> Value {
    project.flow(&["export", run, "--prov", file]).success();
    serde_json::from_slice(&std::fs::read(project.path(file)).unwrap()).unwrap()
}

fn records(document: &Value, kind: &str) -> Vec<Value> {
    let all = document[kind].as_object();
    all.map(|all| all.values().cloned().collect())
        .unwrap_or_default()
}

/// Everything that an entity was made from, by derivations.
fn sources(document: &Value, entity: &str) -> Vec<String> {
    let mut found = vec![entity.to_owned()];
    let mut next = 0;
    while next < found.len() {
        for derived in records(document, "wasDerivedFrom") {
            let source = text_of(&derived["prov:usedEntity"]);
            if derived["prov:generatedEntity"] == found[next].as_str() && !found.contains(&source) {
                found.push(source);
            }
        }
        next += 1;
    }
    found
}

#[test]
fn results_lead_back_to_their_source() {
    let project = Project::medical();
    project.run();
    let run = project.latest();
    let document = document(&project, "latest", "prov.json");
    let node = |name: &str| {
        let nodes = run["nodes"].as_array().unwrap();
        nodes
            .iter()
            .find(|node| node["name"] == name)
            .unwrap()
            .clone()
    };
    let digest = |name: &str| format!("blake3:{}", text_of(&node(name)["outputs"][0]["digest"]));
    let summary = digest("evaluate.summary");
    let entity = &document["entity"][&summary];
    assert_eq!(entity["prov:label"][0], "evaluate.summary");
    assert_eq!(entity["flow:rows"], 4);
    let sources = sources(&document, &summary);
    for earlier in ["questions", "dedup.judge", "clean.keep", "split.assign"] {
        assert!(sources.contains(&digest(earlier)), "{earlier}");
    }
    // The rows file, which no node gave.
    let data: Vec<&String> = sources
        .iter()
        .filter(|source| document["entity"][source.as_str()]["prov:type"]["$"] == "flow:Data")
        .collect();
    assert_eq!(data.len(), 1);
    // Whatever a relation names is there.
    for (kind, ends) in [
        (
            "used",
            [("prov:activity", "activity"), ("prov:entity", "entity")],
        ),
        (
            "wasGeneratedBy",
            [("prov:activity", "activity"), ("prov:entity", "entity")],
        ),
        (
            "wasDerivedFrom",
            [
                ("prov:generatedEntity", "entity"),
                ("prov:usedEntity", "entity"),
            ],
        ),
        (
            "wasStartedBy",
            [("prov:activity", "activity"), ("prov:starter", "activity")],
        ),
        (
            "wasAssociatedWith",
            [("prov:agent", "agent"), ("prov:plan", "entity")],
        ),
    ] {
        let all = records(&document, kind);
        assert!(!all.is_empty(), "{kind}");
        for relation in all {
            for (end, among) in ends {
                assert!(
                    document[among][text_of(&relation[end])].is_object(),
                    "{relation}"
                );
            }
        }
    }
    let fit = node("train.fit");
    let activity = &document["activity"][format!("node:{}", text_of(&fit["fingerprint"]))];
    assert_eq!(activity["prov:startTime"], fit["started"]);
    assert_eq!(activity["prov:endTime"], fit["ended"]);
}

/// Content has the same name in every run; what a run only found was made at no time of its own.
#[test]
fn what_was_cached_is_the_same_and_has_no_times() {
    let project = Project::medical_twice(&[]);
    let first = document(&project, "latest~1", "first.json");
    let second = document(&project, "latest", "second.json");
    let names = |document: &Value| -> Vec<String> {
        let entities = document["entity"].as_object().unwrap();
        entities.keys().cloned().collect()
    };
    assert_eq!(names(&first), names(&second));
    let nodes = |document: &Value| -> Vec<Value> {
        let all = records(document, "activity");
        all.into_iter()
            .filter(|activity| activity["prov:type"]["$"] == "flow:Node")
            .collect()
    };
    assert_eq!(nodes(&first).len(), nodes(&second).len());
    assert!(
        nodes(&first)
            .iter()
            .all(|node| node["prov:endTime"].is_string())
    );
    assert!(
        nodes(&second)
            .iter()
            .all(|node| node["prov:endTime"].is_null() && node["flow:status"] == "cached")
    );
    assert!(records(&second, "wasStartedBy").is_empty());
    project
        .flow(&["export", "latest", "--prov", "first.json"])
        .code(2);
}
