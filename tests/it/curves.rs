//! Curves in the terminal, in comparisons and in reports.

use serde_json::json;

use crate::support::{Project, text_of};

#[test]
fn curves_are_listed_and_plotted() {
    let project = Project::medical();
    project.run();
    let run = text_of(&project.latest()["id"]);
    assert!(
        project
            .flow(&["metrics"])
            .success()
            .stderr
            .contains("reported a curve")
    );
    let lines: String = (1..=40)
        .map(|step| {
            let values = json!({ "train/loss": 4.0 / f64::from(step), "train/lr": 0.001 });
            json!({ "time": "", "node": "train.fit", "step": step, "values": values }).to_string()
                + "\n"
        })
        .collect();
    project.write(&format!("runs/{run}/metrics.jsonl"), lines);
    // A later run finds the node cached and shows its curve all the same.
    project.run();
    insta::assert_snapshot!(project.flow(&["metrics", "latest"]).success().results(), @r"
    metric       node        steps   first    last   lowest   highest   curve
    ──────────────────────────────────────────────────────────────────────────────────────────────
    train/loss   train.fit      40       4     0.1      0.1         4   █▄▂▂▂▂▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁
    train/lr     train.fit      40   0.001   0.001    0.001     0.001   ▅▅▅▅▅▅▅▅▅▅▅▅▅▅▅▅▅▅▅▅▅▅▅▅
    ");
    let plot = project
        .flow(&["metrics", "latest", "loss"])
        .success()
        .stdout;
    assert!(
        plot.starts_with("train/loss of train.fit by step\n"),
        "{plot}"
    );
    assert!(
        plot.contains("lowest 0.1 at step 40, highest 4 at step 1, last 0.1 at step 40"),
        "{plot}"
    );
    let points = project
        .flow(&["metrics", "latest", "train/loss", "--json"])
        .success()
        .json();
    assert_eq!(points[0]["points"].as_array().unwrap().len(), 40);
    insta::assert_snapshot!(project.flow(&["metrics", "latest", "losss"]).code(2).messages(), @r"
    error: the run [run] has no curve `losss`
      help: there are `train/loss`, `train/lr`
    ");
    let compared = project
        .flow(&["compare", "latest~1", "latest", "--json"])
        .success()
        .json();
    assert_eq!(
        compared["curves"][0]["curves"][0],
        compared["curves"][0]["curves"][1]
    );
    project
        .flow(&["report", "latest", "-o", "page.html"])
        .success();
    let page = std::fs::read_to_string(project.path("page.html")).unwrap();
    assert!(page.contains("<h3>Loss</h3>") && page.contains("<h3>Learning rate</h3>"));
}
