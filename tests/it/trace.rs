//! The way of single rows.

use crate::support::{Project, text_of};

#[test]
fn rows_are_followed() {
    let project = Project::medical();
    project.run();
    let id = |sql: &str| text_of(&project.query(sql)[0]["id"]);
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

    let held =
        &project.query("select id, base_f1, tuned_f1 from evaluate.samples order by id limit 1")[0];
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
    let ids = project.query(
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
    let twice = &project.query(
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
