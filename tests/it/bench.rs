//! `flow bench data`, on few rows.

use crate::support::Project;

#[test]
fn the_data_stages_are_measured_and_nothing_is_left() {
    let project = Project::new();
    project.write("place/.keep", "");
    let outcome = project
        .flow(&[
            "bench",
            "data",
            "--rows",
            "1000,2000",
            "--source-rows",
            "1000",
            "--folder",
            "place",
            "--python",
            "no-such-python",
            "--json",
        ])
        .success();
    assert!(
        outcome
            .stderr
            .contains("DuckDB alone is left out: `no-such-python` cannot be started"),
        "{}",
        outcome.stderr
    );
    let measured = outcome.json();
    let nodes = |size: usize| -> Vec<(String, u64)> {
        let nodes = measured["sizes"][size]["flow"]["nodes"].as_array().unwrap();
        nodes
            .iter()
            .map(|node| {
                (
                    node["node"].as_str().unwrap().to_owned(),
                    node["rows"].as_u64().unwrap(),
                )
            })
            .collect()
    };
    // 80 of 1000 questions are asked again; one pair of answers is an exact duplicate, so 79 remain.
    let names: Vec<String> = nodes(0).into_iter().map(|(node, _)| node).collect();
    assert_eq!(
        names,
        [
            "source",
            "groups",
            "verdicts",
            "keep",
            "merged.merge",
            "split.assign",
            "split.train",
            "split.validation"
        ]
    );
    let rows = |size: usize, name: &str| {
        nodes(size)
            .into_iter()
            .find(|(node, _)| node == name)
            .unwrap()
            .1
    };
    assert_eq!((rows(0, "source"), rows(1, "source")), (1000, 2000));
    assert_eq!((rows(0, "groups"), rows(1, "groups")), (79, 158));
    assert_eq!(
        rows(0, "split.train") + rows(0, "split.validation"),
        rows(0, "merged.merge")
    );
    assert!(measured["sizes"][0]["growth"].is_null() && measured["sizes"][1]["growth"].is_number());
    let formats: Vec<&str> = measured["sources"]
        .as_array()
        .unwrap()
        .iter()
        .map(|source| source["format"].as_str().unwrap())
        .collect();
    assert_eq!(formats, ["parquet", "jsonl", "csv", "medquad"]);
    let left: Vec<_> = std::fs::read_dir(project.path("place")).unwrap().collect();
    assert_eq!(left.len(), 1);
}
