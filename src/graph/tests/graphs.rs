//! Pipelines that compile: what their graphs look like.

use super::*;

#[test]
fn expands_stages_into_wired_nodes() {
    let graph = graph(GOOD);
    let names: Vec<_> = graph
        .order
        .iter()
        .map(|&index| graph.dag[index].name.as_str())
        .collect();
    assert_eq!(names, ["questions", "clean.judge", "clean.keep", "merged"]);
    let judge = &graph.dag[graph.node("clean.judge").unwrap()];
    assert_eq!(judge.params, *json!({ "lora": { "dropout": 0.05, "r": 16 }, "mode": "exact", "model": "base", "prompt": "ask.md", "threshold": 0.3 }).as_object().unwrap());
    assert_eq!(judge.files["prompt"].text, "Good? {{ question }}");
    assert_eq!(judge.models["model"].path.as_deref(), Some("model.gguf"));
    assert_eq!(
        (
            judge.inputs[0].port.as_str(),
            judge.inputs[0].node.as_str(),
            judge.inputs[0].output.as_str()
        ),
        ("rows", "questions", "rows")
    );
    assert_eq!(judge.output("log").unwrap().kind, ArtifactKind::Files);
    assert_ne!(judge.seed, 0);
    let merged = &graph.dag[graph.node("merged").unwrap()];
    assert_eq!(merged.inputs[1].node, "clean.keep");
    assert_eq!(merged.seed, 0);
    assert_eq!(graph.name, "p");
    assert_eq!(graph.path.file_name(), Some("p.yaml".as_ref()));
}

#[test]
fn lays_profiles_and_set_over() {
    let project = Project::new(&[("pipelines/p.yaml", GOOD)]);
    let set = vec!["clean.with.lora_unused=1".to_owned()];
    assert!(
        project
            .compile(Request {
                set,
                ..Request::default()
            })
            .is_err()
    );
    let set = vec![
        "questions.with.limit=9".to_owned(),
        "seed=8".to_owned(),
        "questions.with.columns=[id, question, x]".to_owned(),
    ];
    let graph = project
        .compile(Request {
            profile: Some("small".into()),
            set,
            ..Request::default()
        })
        .unwrap();
    assert_eq!(
        graph.dag[graph.node("questions").unwrap()].params["limit"],
        9
    );
    assert_eq!(
        graph.dag[graph.node("clean.judge").unwrap()].params["threshold"],
        1.0
    );
    assert_eq!(graph.seed, 8);
    assert_eq!(graph.profile.as_deref(), Some("small"));
    assert_eq!(
        graph.dag[graph.node("questions").unwrap()].outputs[0]
            .columns
            .as_ref()
            .unwrap()
            .len(),
        3
    );
}

#[test]
fn substitutes_the_environment_by_type() {
    let text = "stages:\n  a: { uses: rows, with: { limit: \"${LIMIT}\", url: \"${LIMIT}\", columns: [\"${X:-id}\"] } }\n";
    let graph = graph(text);
    let node = &graph.dag[graph.node("a").unwrap()];
    assert_eq!(node.params["limit"], 7);
    assert_eq!(node.params["url"], "7");
    assert_eq!(node.params["columns"], json!(["id"]));
    assert_eq!(node.unhashed, ["url"]);
}

#[test]
fn a_file_of_the_users_replaces_that_of_the_stage() {
    let project = Project::new(&[("pipelines/p.yaml", GOOD), ("pipelines/mine.md", "Mine")]);
    let set = vec!["clean.with.prompt=mine.md".to_owned()];
    let graph = project
        .compile(Request {
            set,
            ..Request::default()
        })
        .unwrap();
    assert_eq!(
        graph.dag[graph.node("clean.judge").unwrap()].files["prompt"].text,
        "Mine"
    );
}

#[test]
fn data_may_be_absent_where_it_can_be_fetched_or_is_not_asked_for() {
    let with_url = "stages:\n  a: { uses: rows, with: { path: data.zip, url: \"https://example.org/data.zip\" } }\n";
    let graph = graph(with_url);
    let node = &graph.dag[graph.node("a").unwrap()];
    assert_eq!(node.paths["path"].path, graph.root.join("data.zip"));
    assert_eq!(
        node.paths["path"].url.as_deref(),
        Some("https://example.org/data.zip")
    );

    let project = Project::new(&[(
        "pipelines/p.yaml",
        "stages:\n  a: { uses: rows, with: { path: data.zip } }\n",
    )]);
    insta::assert_snapshot!(project.messages(Request::default()), @r"
     × there is no file or folder `data.zip`
      ╭─[pipelines/p.yaml:2:34]
    1 │ stages:
    2 │   a: { uses: rows, with: { path: data.zip } }
      ·                                  ────────
      ╰────
     help: paths are relative to the project folder; correct it, or put the data there
    ");
    let path = project.0.path().join("pipelines/p.yaml");
    let spec = load(
        &Request {
            path,
            ..Request::default()
        },
        &|_| None,
    )
    .unwrap();
    assert!(compile_without_data(&spec, &catalog()).is_ok());
}

#[test]
fn a_deep_chain_compiles() {
    let mut text = String::from("stages:\n  n0: { uses: rows }\n");
    for index in 1..2000 {
        text.push_str(&format!(
            "  n{index}: {{ uses: merge, inputs: {{ a: n{} }} }}\n",
            index - 1
        ));
    }
    let graph = graph(&text);
    assert_eq!(graph.order.len(), 2000);
    assert!(graph.order.windows(2).all(|pair| pair[0] < pair[1]));
}

#[test]
fn drawings() {
    let graph = graph(GOOD);
    insta::assert_snapshot!(graph.to_mermaid(), @r#"
    flowchart LR
      n0["questions<br/><small>rows</small>"]
      subgraph s_clean["clean"]
        n1["judge<br/><small>ask</small>"]
        n2["keep<br/><small>merge</small>"]
      end
      n3["merged<br/><small>merge</small>"]
      n0 -->|rows| n1
      n1 -->|judged| n2
      n0 -->|rows| n2
      n0 -->|a| n3
      n2 -->|b| n3
    "#);
    insta::assert_snapshot!(graph.to_dot(), @r#"
    digraph "p" {
      rankdir=LR;
      node [shape=box, style=rounded, fontname="sans-serif"];
      "questions" [label="questions\nrows"];
      subgraph "cluster_clean" {
        label="clean";
        "clean.judge" [label="clean.judge\nask"];
        "clean.keep" [label="clean.keep\nmerge"];
      }
      "merged" [label="merged\nmerge"];
      "questions" -> "clean.judge" [label="rows"];
      "clean.judge" -> "clean.keep" [label="judged"];
      "questions" -> "clean.keep" [label="rows"];
      "questions" -> "merged" [label="a"];
      "clean.keep" -> "merged" [label="b"];
    }
    "#);
}
