//! Reports: what is on the page of a run.

use crate::support::{Project, text_of};

#[test]
fn a_run_that_did_something_leaves_a_report() {
    let project = Project::medical();
    project.run();
    let run = text_of(&project.latest()["id"]);
    let page = std::fs::read_to_string(project.path(&format!("runs/{run}/report.html"))).unwrap();
    for part in [
        "Scores: evaluate",
        "F1 (0–100)",
        "95 % bootstrap interval",
        "Rows after each stage",
        "Questions with several answers",
        "Rows by question type",
        "Length of answers after tuning",
        "Gained most: evaluate",
        "evaluate.base_score",
        "stratified",
    ] {
        assert!(page.contains(part), "{part}");
    }
    // Rows may speak of other pages; nothing asks for one.
    for outside in [
        "<script", "<link", "<img", "src=", "href=", "url(", "@import",
    ] {
        assert!(!page.contains(outside), "{outside}");
    }
    project.run();
    let second = text_of(&project.latest()["id"]);
    assert!(!project.path(&format!("runs/{second}/report.html")).exists());
    let outcome = project.flow(&["report"]).success();
    assert_eq!(outcome.stdout.trim(), format!("runs/{second}/report.html"));
    assert!(project.path(&format!("runs/{second}/report.html")).exists());
}

#[test]
fn totals_in_the_report_are_those_of_the_summary() {
    let project = Project::medical();
    // As many draws as the report makes.
    let stage =
        std::fs::read_to_string(project.path("stages/evaluate-by-rule/stage.yaml")).unwrap();
    project.write(
        "stages/evaluate-by-rule/stage.yaml",
        stage.replace("resamples: 500", "resamples: 10000"),
    );
    project.run();
    project
        .flow(&["report", "latest", "-o", "page.html"])
        .success();
    let page = std::fs::read_to_string(project.path("page.html")).unwrap();
    let f1 = &project.query("from evaluate.summary where metric = 'f1'")[0];
    let number = |name: &str| format!("{:.1}", f1[name].as_f64().unwrap()).replace('-', "−");
    let shown = format!("[{}, {}]", number("low"), number("high"));
    assert!(page.contains(&shown), "{shown}");
    assert!(page.contains(&format!("{} → {}", number("base"), number("tuned"))));
}

#[test]
fn text_of_rows_is_no_markup() {
    let project = Project::medical();
    let rows = std::fs::read_to_string(project.path("rows.jsonl")).unwrap();
    let nasty = "<script>alert('x')</script> & \\\"more\\\"";
    project.write(
        "rows.jsonl",
        rows.replace("\"question\": \"", &format!("\"question\": \"{nasty} ")),
    );
    project.run();
    project
        .flow(&["report", "latest", "-o", "page.html"])
        .success();
    let page = std::fs::read_to_string(project.path("page.html")).unwrap();
    assert!(!page.contains("<script"));
    assert!(page.contains("&lt;script&gt;"));
    project
        .flow(&["run", "pipelines/p.yaml", "--set", "evaluate.with.words=4"])
        .success();
    project
        .flow(&["compare", "latest~1", "latest", "--html", "compare.html"])
        .success();
    let page = std::fs::read_to_string(project.path("compare.html")).unwrap();
    assert!(!page.contains("<script") && page.contains("&lt;script&gt;"));
}

#[test]
fn a_failed_run_has_a_report_too() {
    let project = Project::with_pipeline(
        "stages:\n  bad: { uses: command, with: { run: 'exit 3' } }\n  below: { uses: command, with: { run: 'true' }, inputs: { x: bad } }\n",
    );
    project.flow(&["run", "pipelines/p.yaml"]).code(1);
    let run = text_of(&project.latest()["id"]);
    let page = std::fs::read_to_string(project.path(&format!("runs/{run}/report.html"))).unwrap();
    assert!(
        page.contains("notice bad")
            && page.contains("node failed")
            && page.contains("node skipped")
    );
}
