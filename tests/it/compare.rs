//! Comparisons of runs, against their tables.

use serde_json::{Value, json};

use crate::support::{Project, text_of};

#[test]
fn runs_are_compared() {
    let project = Project::medical_twice(&["dedup.with.shift=1", "evaluate.with.words=20"]);
    let compared = project
        .flow(&["compare", "latest~1", "latest", "--json"])
        .success()
        .json();
    let parts: Vec<_> = compared["params"]
        .as_array()
        .unwrap()
        .iter()
        .map(|part| json!([part["node"], part["part"], part["values"]]))
        .collect();
    assert_eq!(
        json!(parts),
        json!([
            ["dedup.judge", "with.params.shift", ["0", "1"]],
            ["evaluate.tuned", "with.params.words", ["12", "20"]],
        ])
    );
    let node = |name: &str| {
        let nodes = compared["nodes"].as_array().unwrap();
        nodes.iter().find(|node| node["node"] == name).cloned()
    };
    assert_eq!(node("dedup.groups"), None);
    assert_eq!(
        node("dedup.judge").unwrap()["parts"],
        json!(["with.params.shift"])
    );
    assert_eq!(
        node("merged.merge").unwrap()["inputs"],
        json!({ "deduped": "dedup.rows" })
    );
    assert_eq!(compared["missing"], json!([]));

    // Against the tables themselves.
    let ids = |run: &str| -> Vec<String> {
        let rows = project
            .flow(&["data", run, "merged", "--json"])
            .success()
            .json();
        rows.as_array()
            .unwrap()
            .iter()
            .map(|row| text_of(&row["id"]))
            .collect()
    };
    let (before, after) = (ids("latest~1"), ids("latest"));
    let datasets = compared["datasets"].as_array().unwrap();
    let merged = datasets
        .iter()
        .find(|dataset| dataset["output"] == "merged")
        .unwrap();
    let entered = after.iter().filter(|id| !before.contains(id)).count();
    let left = before.iter().filter(|id| !after.contains(id)).count();
    assert!(entered > 0 && left > 0);
    assert_eq!(
        (&merged["entered"], &merged["left"]),
        (&json!(entered), &json!(left))
    );
    assert_eq!(merged["changed"], 0);

    let scores = |run: &str| -> std::collections::BTreeMap<String, f64> {
        let rows = project
            .flow(&["data", run, "evaluate.samples", "--json"])
            .success()
            .json();
        let pair = |row: &Value| (text_of(&row["id"]), row["tuned_f1"].as_f64().unwrap());
        rows.as_array().unwrap().iter().map(pair).collect()
    };
    let (before, after) = (scores("latest~1"), scores("latest"));
    let differences: Vec<f64> = before
        .iter()
        .filter_map(|(id, old)| Some(after.get(id)? - old))
        .collect();
    let mean = differences.iter().sum::<f64>() / differences.len() as f64;
    let metrics = compared["metrics"].as_array().unwrap();
    let f1 = metrics
        .iter()
        .find(|metric| metric["column"] == "tuned_f1")
        .unwrap();
    let change = &f1["changes"][1];
    assert_eq!(f1["changes"][0], Value::Null);
    assert_eq!(change["rows"], json!(differences.len()));
    assert!((change["difference"].as_f64().unwrap() - mean).abs() < 1e-9);
    assert!(change["low"].as_f64().unwrap() < mean && mean < change["high"].as_f64().unwrap());

    let best = &compared["better"][0];
    let [old, new] = [0, 1].map(|side| best["scores"][side].as_f64().unwrap());
    let most = differences.iter().copied().fold(f64::MIN, f64::max);
    assert!((new - old - most).abs() < 1e-9);
    assert_ne!(best["answers"][0], best["answers"][1]);
}

#[test]
fn a_comparison_is_a_text_of_tables() {
    let project = Project::medical_twice(&["evaluate.with.words=20"]);
    let text = project
        .flow(&["compare", "latest~1", "latest"])
        .success()
        .results();
    let section = |title: &str| {
        let lines = text.lines().skip_while(|line| !line.starts_with(title));
        lines
            .take_while(|line| !line.is_empty())
            .collect::<Vec<_>>()
            .join("\n")
    };
    insta::assert_snapshot!(section("what was asked"), @r"
    what was asked differently
    node             part                 A    B
    ──────────────────────────────────────────────
    evaluate.tuned   with.params.words   12   20
    ");
    insta::assert_snapshot!(section("nodes that differ"), @r"
    nodes that differ
    node             A     B     because of          result
    ──────────────────────────────────────────────────────────
    evaluate.tuned   ran   ran   with.params.words   differs
    ");
    insta::assert_snapshot!(section("scores"), @r"
    scores (means; differences from A with 95 % intervals)
    metric                                            A   B
    ─────────────────────────────────────────────────────────────────────────────────────────────
    evaluate F1 (0–100), base_f1                   53.7   53.7  ±0.0 [0.0, 0.0], 64 rows
    evaluate F1 (0–100), tuned_f1                  68.9   90.4  +21.5 [19.2, 23.6], 64 rows
    evaluate exact match (%), base_exact_match      0.0   0.0  ±0.0 [0.0, 0.0], 64 rows
    evaluate exact match (%), tuned_exact_match     0.0   17.2  +17.2 [9.4, 26.6], 64 rows
    evaluate agreement, base_agreement             3.16   3.16  ±0.00 [0.00, 0.00], 64 rows
    evaluate agreement, tuned_agreement            3.11   3.02  −0.09 [−0.53, 0.34], 64 rows
    evaluate similarity, base_similarity          0.500   0.500  ±0.000 [0.000, 0.000], 64 rows
    evaluate similarity, tuned_similarity         0.750   0.750  ±0.000 [0.000, 0.000], 64 rows
    ");
    let same = project
        .flow(&["compare", "latest", "latest"])
        .success()
        .results();
    assert!(
        same.contains("the runs asked for the same and gave the same"),
        "{same}"
    );
    project.flow(&["compare", "latest"]).code(2);
}

#[test]
fn records_are_compared_and_drawn_while_a_run_holds_the_cache() {
    let project = Project::medical_twice(&["dedup.with.shift=1"]);
    let held = project.hold_cache();
    let compared = project
        .flow(&["compare", "latest~1", "latest", "--json"])
        .success()
        .json();
    assert_eq!(compared["params"][0]["part"], "with.params.shift");
    assert_eq!(compared["metrics"], json!([]));
    assert!(
        compared["missing"][0]
            .as_str()
            .unwrap()
            .contains("is in use by another process")
    );
    project
        .flow(&["report", "latest", "-o", "page.html"])
        .success();
    let page = std::fs::read_to_string(project.path("page.html")).unwrap();
    assert!(
        page.contains("Rows, scores and samples are not shown") && page.contains("dedup.judge")
    );
    drop(held);
    project
        .flow(&["report", "latest", "-o", "page.html"])
        .success();
    let page = std::fs::read_to_string(project.path("page.html")).unwrap();
    assert!(!page.contains("are not shown"));
}
