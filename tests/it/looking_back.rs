//! Reports, comparisons, traces, curves, and queries over what runs gave.

use serde_json::{Value, json};

use crate::support::Project;

/// A project that ran twice, the second time with `settings`.
fn two_runs(settings: &[&str]) -> Project {
    let project = Project::medical();
    project.run();
    let mut arguments = vec!["run", "pipelines/p.yaml"];
    for setting in settings {
        arguments.extend(["--set", setting]);
    }
    project.flow(&arguments).success();
    project
}

fn query(project: &Project, sql: &str) -> Vec<Value> {
    let rows = project
        .flow(&["data", "latest", "--sql", sql, "--json"])
        .success()
        .json();
    rows.as_array().cloned().unwrap_or_default()
}

fn text_of(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// Holds the database as a run does that commits just now.
fn hold(project: &Project) -> duckdb::Connection {
    duckdb::Connection::open(project.path("cache/flow.duckdb"))
        .expect("nobody has the database open")
}

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
    let f1 = &query(&project, "from evaluate.summary where metric = 'f1'")[0];
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

#[test]
fn runs_are_compared() {
    let project = two_runs(&["dedup.with.shift=1", "evaluate.with.words=20"]);
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
    let project = two_runs(&["evaluate.with.words=20"]);
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
    let project = two_runs(&["dedup.with.shift=1"]);
    let held = hold(&project);
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

#[test]
fn rows_are_followed() {
    let project = Project::medical();
    project.run();
    let id = |sql: &str| text_of(&query(&project, sql)[0]["id"]);
    let follow = |id: &str| {
        let trace = project
            .flow(&["trace", "latest", id, "--json"])
            .success()
            .json();
        let steps: Vec<String> = trace["steps"]
            .as_array()
            .unwrap()
            .iter()
            .map(|step| format!("{} {}", text_of(&step["output"]), text_of(&step["event"])))
            .collect();
        (text_of(&trace["fate"]), steps)
    };

    let winner = id(
        "select ids[choice] as id from dedup.groups join dedup.judge using (id) semi join clean on clean.id = ids[choice] where choice > 0 order by id limit 1",
    );
    let (_, steps) = follow(&winner);
    assert_eq!(
        steps[..5],
        [
            "questions source",
            "dedup.groups group",
            "dedup.judge verdict",
            "dedup.rows kept",
            "merged kept"
        ]
    );

    let loser = id(
        "select id from (select unnest(ids) as id, ids[choice] as winner from dedup.groups join dedup.judge using (id) where choice > 0) where id <> winner order by id limit 1",
    );
    let (fate, steps) = follow(&loser);
    assert!(
        fate.starts_with("dropped at merged: ") && fate.ends_with(" was chosen for its question"),
        "{fate}"
    );
    assert_eq!(steps[3..], ["dedup.rows dropped", "merged dropped"]);

    let none = id(
        "select ids[1] as id from dedup.groups join dedup.judge using (id) where choice = 0 order by id limit 1",
    );
    assert_eq!(
        follow(&none).0,
        "dropped at merged: no answer to its question was acceptable"
    );

    let filtered = id(
        "select id from merged anti join clean using (id) anti join dedup.rows using (id) order by id limit 1",
    );
    let (fate, steps) = follow(&filtered);
    assert!(
        fate.starts_with("dropped at clean: the judge chose 0 with probability"),
        "{fate}"
    );
    assert!(
        fate.ends_with("; kept from a probability of 1 of 0.5 on"),
        "{fate}"
    );
    assert_eq!(
        steps,
        [
            "questions source",
            "dedup.rows passed_by",
            "merged kept",
            "clean.judge verdict",
            "clean dropped"
        ]
    );

    let learnt = id("select id from split.train order by id limit 1");
    assert_eq!(follow(&learnt).0, "learnt from: it is in the training rows");

    let held = &query(
        &project,
        "select id, base_f1, tuned_f1 from evaluate.samples order by id limit 1",
    )[0];
    let trace = project
        .flow(&["trace", "latest", held["id"].as_str().unwrap(), "--json"])
        .success()
        .json();
    let scored = trace["steps"].as_array().unwrap().last().unwrap().clone();
    let f1 = scored["scores"]
        .as_array()
        .unwrap()
        .iter()
        .find(|score| score["metric"] == "f1")
        .unwrap()
        .clone();
    assert_eq!(
        (&f1["before"], &f1["value"]),
        (&held["base_f1"], &held["tuned_f1"])
    );
    assert!(text_of(&trace["fate"]).starts_with("held out for validation; F1 (0–100) "));
}

/// Every row that came in is learnt from, held out, or dropped somewhere, as the tables say.
#[test]
fn every_row_has_a_fate() {
    let project = Project::medical();
    project.run();
    let ids = query(
        &project,
        "select id, question, id in (select id from split.train) as learnt, id in (select id from split.validation) as held from questions order by id",
    );
    let record = project.path("runs").join(text_of(&project.latest()["id"]));
    let run = flow::runs::Run::read(&record).unwrap();
    let cache = flow::cache::Cache::open_read_only(&run.view.head.cache).unwrap();
    let tables = flow::insight::Tables::new(&run, &cache).unwrap();
    let mut seen = std::collections::BTreeMap::<&str, usize>::new();
    for row in ids.iter().step_by(4) {
        let trace = flow::insight::trace::trace(&tables, &text_of(&row["id"]));
        let fate = trace.unwrap().unwrap().fate;
        let expected = match (row["learnt"] == true, row["held"] == true) {
            (true, _) => "learnt from",
            (_, true) => "held out",
            _ => "dropped at",
        };
        assert!(fate.starts_with(expected), "{row}: {fate}");
        *seen.entry(expected).or_default() += 1;
    }
    assert_eq!(seen.len(), 3, "{seen:?}");
}

#[test]
fn rows_are_found_by_their_question() {
    let project = Project::medical();
    project.run();
    let twice = &query(
        &project,
        "select question, count(*) as n from questions group by all having n > 1 order by question limit 1",
    )[0];
    let question = twice["question"].as_str().unwrap();
    let traces = project
        .flow(&["trace", "latest", "--question", question, "--json"])
        .success()
        .json();
    assert_eq!(
        traces.as_array().unwrap().len() as u64,
        twice["n"].as_u64().unwrap()
    );
    let many = project
        .flow(&["trace", "latest", "--question", "what"])
        .code(2);
    assert!(
        many.stderr.contains("questions have `what` in them"),
        "{}",
        many.stderr
    );
    insta::assert_snapshot!(project.flow(&["trace", "latest", "--question", "zzz"]).code(2).messages(), @r"
    error: no question of the run [run] has `zzz` in it
      help: try fewer words, or find the row with `flow data RUN --sql`
    ");
    insta::assert_snapshot!(project.flow(&["trace", "latest", "nobody"]).code(2).messages(), @r"
    error: the run [run] has no row `nobody`
      help: its ids look like `acne-causes`, `acne-information`, `acne-prevention`; `--question` finds rows by their text
    ");
    project.flow(&["trace", "latest"]).code(2);
}

#[test]
fn queries_reach_every_table() {
    let project = Project::medical();
    project.run();
    let listed = project.flow(&["data", "latest"]).success().results();
    assert!(
        listed.lines().any(|line| line.starts_with("split.train ")),
        "{listed}"
    );
    assert!(
        listed
            .lines()
            .any(|line| line.starts_with("train ") && line.contains("files")),
        "{listed}"
    );
    let sums = query(
        &project,
        "select (select count(*) from split.train) + (select count(*) from split.validation) as parts,
            (select count(*) from clean) as whole, (select count(*) from clean.keep) as inner_name,
            (select count(*) from \"evaluate\".\"base_score.rows\") as third",
    );
    assert_eq!(sums[0]["parts"], sums[0]["whole"]);
    assert_eq!(sums[0]["inner_name"], sums[0]["whole"]);
    assert!(sums[0]["third"].as_u64().unwrap() > 0);
    project
        .flow(&[
            "data",
            "latest",
            "--sql",
            "select id from clean order by id",
            "--limit",
            "3",
            "--export",
            "ids.parquet",
        ])
        .success();
    assert!(project.path("ids.parquet").is_file());
    project
        .flow(&["data", "latest", "--export", "x.csv"])
        .code(2);
    // Queries only look.
    project
        .flow(&["data", "latest", "--sql", "drop table clean"])
        .code(2);
    assert!(!query(&project, "select 1 as one from clean limit 1").is_empty());
}

#[test]
fn runs_are_filtered_and_sorted() {
    let project = two_runs(&["evaluate.with.words=3"]);
    project
        .flow(&["run", "pipelines/p.yaml", "--profile", "strict"])
        .success();
    project.write(
        "pipelines/bad.yaml",
        "stages:\n  bad: { uses: command, with: { run: 'exit 3' } }\n",
    );
    project.flow(&["run", "pipelines/bad.yaml"]).code(1);
    let listed = |arguments: &[&str]| {
        let mut all = vec!["runs", "--json"];
        all.extend(arguments);
        let heads = project.flow(&all).success().json();
        heads.as_array().unwrap().clone()
    };
    assert_eq!(listed(&[]).len(), 4);
    assert_eq!(listed(&["--pipeline", "medical"]).len(), 3);
    assert_eq!(listed(&["--profile", "strict"]).len(), 1);
    assert_eq!(
        listed(&["--state", "failed", "--state", "running"]).len(),
        1
    );
    assert_eq!(
        (
            listed(&["--since", "1h"]).len(),
            listed(&["--since", "9999-01-01"]).len()
        ),
        (4, 0)
    );
    let f1: Vec<f64> = listed(&["--pipeline", "medical", "--sort", "f1_tuned"])
        .iter()
        .map(|head| {
            head["metrics"]["evaluate.summary.f1_tuned"]
                .as_f64()
                .unwrap()
        })
        .collect();
    assert!(f1.is_sorted_by(|a, b| a >= b) && f1[0] > f1[2], "{f1:?}");
    let oldest = listed(&["--reverse"]);
    assert!(oldest[0]["id"].as_str() < oldest[3]["id"].as_str());
    let shown = project
        .flow(&["runs", "--metric", "f1_tuned"])
        .success()
        .results();
    assert!(
        shown.lines().next().unwrap().ends_with("f1_tuned"),
        "{shown}"
    );
    insta::assert_snapshot!(project.flow(&["runs", "--metric", "f2_tuned"]).code(2).messages().lines().next().unwrap(), @"error: no run has a final number `f2_tuned`");
    insta::assert_snapshot!(project.flow(&["runs", "--state", "failed", "--profile", "strict"]).success().messages(), @"none of 4 runs is of this kind");
    project.flow(&["runs", "--since", "soon"]).code(2);
}

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

/// Says so where no browser is installed.
#[test]
#[expect(clippy::print_stdout, reason = "a test that was skipped has to say so")]
fn pages_open_in_a_browser_where_there_is_one() {
    let project = two_runs(&["dedup.with.shift=1"]);
    project
        .flow(&["report", "latest", "-o", "report.html"])
        .success();
    project
        .flow(&["compare", "latest~1", "latest", "--html", "compare.html"])
        .success();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/check-pages.sh");
    let checked = std::process::Command::new(script)
        .args(["report.html", "compare.html"])
        .current_dir(project.path("."))
        .output()
        .expect("the script can be started");
    let said = String::from_utf8_lossy(&checked.stderr);
    match checked.status.code() {
        Some(0) => {}
        Some(77) => println!("{said}"),
        _ => panic!("{said}"),
    }
}
