//! Pipelines with a language model: what is asked again after an edit or a crash, and what is not.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::Project;

/// The whole way: judge, merge, filter, split, train, evaluate; the stages are the built-in ones.
const MEDICAL: &str = r#"
name: medical
seed: 7
models:
  tiny: { path: models/tiny }
  embedder: { path: "${MODELS}/all-minilm-l6-v2" }
stages:
  questions: { uses: source, with: { path: rows.jsonl } }
  dedup: { uses: judge-dedup, inputs: { rows: questions }, with: { model: tiny, quant: none } }
  merged: { uses: merge, inputs: { original: questions, deduped: dedup.rows, groups: dedup.groups } }
  clean: { uses: quality-filter, inputs: { rows: merged }, with: { model: tiny, quant: none, threshold: 0 } }
  split: { uses: stratified-split, inputs: { rows: clean } }
  train:
    uses: qlora-train
    inputs: { train: split.train, validation: split.validation }
    with:
      model: tiny
      lora: { r: 4, alpha: 8 }
      learning_rate: 0.01
      batch_size: 2
      gradient_accumulation: 1
      epochs: 8
      max_length: 256
      eval_every: 4
      early_stopping_patience: 0
      checkpoint_every: 1
  evaluate:
    uses: evaluate
    inputs: { rows: split.validation, adapter: train.adapter }
    with: { model: tiny, judge: tiny, embedder: embedder, generation: { max_new_tokens: 8 } }
"#;

/// `count` rows of two question types; every third question has two answers that differ.
fn rows(count: usize) -> String {
    let row = |index: usize| {
        let question = match index % 3 {
            2 => index - 1,
            _ => index,
        };
        let kind = ["symptoms", "treatment"][question % 2];
        json!({
            "id": format!("r{index:04}"),
            "question": format!("What is said of case {question}?"),
            "answer": format!("Case {index} is said to be {}.", ["mild", "grave", "rare", "common"][index % 4]),
            "question_type": kind,
        })
    };
    (0..count)
        .map(|index| format!("{}\n", row(index)))
        .collect()
}

pub fn medical(count: usize) -> Project {
    let home = std::env::var("FLOW_HOME").expect("`make test` sets FLOW_HOME");
    Project::with_pipeline(MEDICAL)
        .file("rows.jsonl", &rows(count))
        .with_tiny_model()
        .variable("MODELS", &format!("{home}/models"))
        // Other tests run beside; threads that wait must not keep the cores from them.
        .variable("OMP_WAIT_POLICY", "passive")
}

fn node<'a>(run: &'a Value, name: &str) -> &'a Value {
    let nodes = run["nodes"].as_array().unwrap();
    nodes.iter().find(|node| node["name"] == name).unwrap()
}

/// Node, output and digest of everything the latest run gave.
fn digests(project: &Project) -> Vec<(String, String, String)> {
    let run = project.latest();
    let nodes = run["nodes"].as_array().unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let outputs = nodes.iter().flat_map(|node| {
        let outputs = node["outputs"].as_array().unwrap().iter();
        outputs.map(|output| {
            (
                text(&node["name"]),
                text(&output["name"]),
                text(&output["digest"]),
            )
        })
    });
    let mut digests: Vec<_> = outputs.collect();
    digests.sort();
    digests
}

fn start(project: &Project) -> Child {
    let mut command = project.command(&["run", "pipelines/p.yaml"]);
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    child.unwrap()
}

#[track_caller]
fn kill_when(mut child: Child, mut due: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !due() {
        assert!(Instant::now() < deadline, "waited too long");
        let ended = child.try_wait().unwrap();
        assert!(ended.is_none(), "the run ended before it could be killed");
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn the_whole_way_runs_once_and_edits_ask_no_more_than_they_must() {
    let project = medical(24);
    let stage = format!("{}/stages/judge-dedup", env!("CARGO_MANIFEST_DIR"));
    for file in std::fs::read_dir(stage).unwrap() {
        let file = file.unwrap();
        let name = file.file_name().into_string().unwrap();
        project.write(
            &format!("stages/judge-dedup/{name}"),
            std::fs::read(file.path()).unwrap(),
        );
    }
    project.run();
    let first = project.latest();
    assert_eq!(node(&first, "dedup.judge")["metrics"]["asked"], 8.0);
    assert_eq!(
        project.rows("split.train").as_array().unwrap().len()
            + project.rows("split.validation").as_array().unwrap().len(),
        24 - 8 - dropped(&project)
    );
    assert!(project.rows("train.curve").as_array().unwrap().len() >= 8);

    project.run();
    assert_eq!(project.ran(), [""; 0]);

    // Only the SQL behind the judge: no prompt is asked, and since the result is the same nothing else runs.
    let keep = project.path("stages/judge-dedup/keep.sql");
    let sql = std::fs::read_to_string(&keep).unwrap();
    std::fs::write(&keep, format!("{}\nand true", sql.trim_end())).unwrap();
    project.run();
    assert_eq!(project.ran(), ["dedup.keep"]);

    // A row more: verdicts on prompts that were asked before are taken from there.
    let more = project.path("rows.jsonl");
    let mut text = std::fs::read_to_string(&more).unwrap();
    text.push_str(
        r#"{"id":"r9999","question":"What is new?","answer":"This.","question_type":"symptoms"}"#,
    );
    std::fs::write(&more, text).unwrap();
    project
        .flow(&["run", "pipelines/p.yaml", "--until", "clean"])
        .success();
    assert_eq!(
        node(&project.latest(), "clean.judge")["metrics"]["asked"],
        1.0
    );
}

/// Groups whose answers the judge refused.
fn dropped(project: &Project) -> usize {
    let verdicts = project.rows("dedup.judge");
    let refused = verdicts.as_array().unwrap().iter();
    refused.filter(|row| row["choice"] == 0).count()
}

#[test]
fn training_killed_in_the_middle_ends_with_the_same_bits() {
    let whole = medical(24);
    whole.run();

    let killed = medical(24);
    let child = start(&killed);
    let partial = killed.path("cache/partial");
    let checkpoint = || {
        let nodes = std::fs::read_dir(&partial).into_iter().flatten().flatten();
        nodes.into_iter().any(|node| {
            node.path()
                .join("checkpoint/checkpoint.safetensors")
                .exists()
        })
    };
    kill_when(child, checkpoint);
    let resumed = killed.run();
    assert!(
        resumed.stderr.contains("continuing after step"),
        "{}",
        resumed.stderr
    );
    assert_eq!(digests(&killed), digests(&whole));
}

#[test]
fn a_judge_killed_in_the_middle_asks_no_prompt_twice() {
    // As many rows as keep this machine busy for longer than verdicts wait to be kept.
    let until = ["run", "pipelines/p.yaml", "--until", "clean.judge"];
    let mut count = 1500;
    let whole = loop {
        let whole = medical(count);
        whole.flow(&until).success();
        if node(&whole.latest(), "clean.judge")["seconds"]
            .as_f64()
            .unwrap()
            > 5.0
        {
            break whole;
        }
        count *= 2;
    };
    let asked = node(&whole.latest(), "clean.judge")["metrics"]["asked"]
        .as_f64()
        .unwrap();

    let killed = medical(count);
    let mut command = killed.command(&until);
    let child = command
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    kill_at_progress(child, "clean.judge");
    killed.flow(&until).success();
    let again = node(&killed.latest(), "clean.judge")["metrics"]["asked"]
        .as_f64()
        .unwrap();
    assert!(
        again > 0.0 && again < asked,
        "{again} of {asked} were asked after the crash"
    );
    assert_eq!(digests(&killed), digests(&whole));
}

/// Kills a run as soon as it says how far `node` is, which it does once results are kept.
fn kill_at_progress(mut child: Child, node: &str) {
    use std::io::BufRead as _;
    let lines = std::io::BufReader::new(child.stderr.take().unwrap()).lines();
    let progress = format!("  {node}: ");
    assert!(
        lines
            .map_while(Result::ok)
            .any(|line| line.starts_with(&progress))
    );
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn the_whole_way_is_reported_compared_and_followed() {
    let project = medical(24);
    project.run();
    let id = project.latest()["id"].as_str().unwrap().to_owned();
    let page = std::fs::read_to_string(project.path(&format!("runs/{id}/report.html"))).unwrap();
    for part in [
        "<h3>Loss</h3>",
        "validation",
        "<h3>Learning rate</h3>",
        "Scores: evaluate",
        "agreement",
        "similarity",
    ] {
        assert!(page.contains(part), "{part}");
    }
    project
        .flow(&[
            "run",
            "pipelines/p.yaml",
            "--set",
            "train.with.learning_rate=0.02",
        ])
        .success();
    let compared = project
        .flow(&["compare", "latest~1", "latest", "--json"])
        .success()
        .json();
    assert_eq!(compared["missing"], json!([]));
    assert_eq!(
        compared["params"],
        json!([{ "node": "train.fit", "part": "with.learning_rate", "values": ["0.01", "0.02"] }])
    );
    let curve = |metric: &str| {
        let curves = compared["curves"].as_array().unwrap();
        let found = curves.iter().find(|curve| curve["metric"] == metric);
        found.unwrap()["curves"].clone()
    };
    let loss = curve("train/loss");
    assert_eq!(
        loss[0].as_array().unwrap().len(),
        loss[1].as_array().unwrap().len()
    );
    assert_ne!(loss[0], loss[1]);
    assert!(!curve("eval/loss")[0].as_array().unwrap().is_empty());
    let metrics = compared["metrics"].as_array().unwrap();
    let base = metrics
        .iter()
        .find(|metric| metric["column"] == "base_f1")
        .unwrap();
    // The base model is the same in both.
    assert_eq!(base["changes"][1]["difference"], 0.0);

    let held = project.rows("split.validation");
    let held = held[0]["id"].as_str().unwrap();
    let trace = project
        .flow(&["trace", "latest", held, "--json"])
        .success()
        .json();
    assert!(
        trace["fate"]
            .as_str()
            .unwrap()
            .starts_with("held out for validation; F1")
    );
    let scored = trace["steps"].as_array().unwrap().last().unwrap().clone();
    assert_eq!(scored["event"], "scored");
    assert_eq!(scored["answers"].as_array().unwrap().len(), 2);
    let verdicts = project.rows("dedup.judge");
    let groups = project.rows("dedup.groups");
    let (verdict, group) = (&verdicts[0], groups.as_array().unwrap());
    let group = group
        .iter()
        .find(|group| group["id"] == verdict["id"])
        .unwrap();
    for member in group["ids"].as_array().unwrap() {
        let trace = project
            .flow(&["trace", "latest", member.as_str().unwrap(), "--json"])
            .success()
            .json();
        let steps = trace["steps"].as_array().unwrap();
        let told = steps
            .iter()
            .find(|step| step["node"] == "dedup.judge")
            .unwrap();
        assert_eq!(
            (&told["choice"], &told["probability"]),
            (&verdict["choice"], &verdict["probability"])
        );
    }
}
