//! What a run has trained, in the formats of other programs.

use std::path::Path;

use flow::lm::{
    Adapter, DeviceChoice, DtypeChoice, LanguageModel, LoadOptions, LogitDifference, Message,
    load_adapter, prompt_logits,
};
use serde_json::Value;

use crate::support::Project;
use crate::support::tuned::tuned;

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn load(path: &Path) -> LanguageModel {
    let options = LoadOptions {
        device: DeviceChoice::Cpu,
        dtype: DtypeChoice::F32,
    };
    LanguageModel::load(path, &options).unwrap()
}

fn questions() -> Vec<Vec<Message>> {
    ["What is a cyst?", "Why?"]
        .map(|question| vec![Message::system("Answer."), Message::user(question)])
        .into()
}

/// How far the model at `path` is from base and adapter, and how far the base alone is.
fn apart(project: &Project, adapter: &Path, path: &Path) -> [LogitDifference; 2] {
    let mut model = load(&project.path("models/tiny"));
    let bare = prompt_logits(&model, &questions()).unwrap();
    let adapter: Adapter = load_adapter(adapter, &model.decoder).unwrap();
    adapter.install(&mut model.decoder, false).unwrap();
    let reference = prompt_logits(&model, &questions()).unwrap();
    let found = prompt_logits(&load(path), &questions()).unwrap();
    [
        LogitDifference::of(&reference, &found),
        LogitDifference::of(&reference, &bare),
    ]
}

#[test]
fn a_run_becomes_an_adapter_a_model_a_gguf_and_a_data_set() {
    let project = tuned();
    let outcome = project
        .flow(&[
            "export",
            "--adapter",
            "out/adapter",
            "--merge",
            "out/merged",
            "--gguf",
            "out/m.gguf",
            "--dataset",
            "out/data",
        ])
        .success();
    assert_eq!(
        outcome.stdout,
        "out/adapter\nout/data\nout/merged\nout/m.gguf\n"
    );
    assert!(
        outcome
            .stderr
            .contains("`out/merged` against base and adapter: logits differ by"),
        "{}",
        outcome.stderr
    );
    assert!(
        outcome
            .stderr
            .contains("for comparison, the nf4 base of the training with the adapter: "),
        "{}",
        outcome.stderr
    );

    let adapter = project.path("out/adapter");
    assert_eq!(
        json(&adapter.join("adapter_config.json"))["peft_type"],
        "LORA"
    );
    assert!(adapter.join("adapter_model.safetensors").is_file());

    // Rounded to bf16 and to f16 the merged weights give nearly the same logits, which the base alone does not.
    for (path, most) in [("out/merged", 0.02), ("out/m.gguf", 0.002)] {
        let [merged, bare] = apart(&project, &adapter, &project.path(path));
        assert!(
            merged.mean < most * bare.mean,
            "{path}: {merged:?}, without the adapter {bare:?}"
        );
    }
    let config = json(&project.path("out/merged/config.json"));
    assert_eq!(
        (&config["dtype"], &config["model_type"]),
        (&"bfloat16".into(), &"llama".into())
    );

    let card = std::fs::read_to_string(project.path("out/data/README.md")).unwrap();
    assert!(
        card.starts_with("---\npretty_name: \"tuned\"\n")
            && card.contains("  - split: train\n    path: data/train-*\n"),
        "{card}"
    );
    let rows = count(&project.path("out/data/data/train-00000-of-00001.parquet"));
    assert_eq!(rows, 12);
}

fn count(parquet: &Path) -> u64 {
    let connection = duckdb::Connection::open_in_memory().unwrap();
    let query = format!("select count(*) from '{}'", parquet.display());
    connection.query_row(&query, [], |row| row.get(0)).unwrap()
}

#[test]
fn a_gguf_of_8_bit_stays_close() {
    let project = tuned();
    project
        .flow(&[
            "export",
            "latest",
            "--adapter",
            "a",
            "--gguf",
            "q.gguf",
            "--gguf-format",
            "q8_0",
        ])
        .success();
    let [q8, bare] = apart(&project, &project.path("a"), &project.path("q.gguf"));
    assert!(
        q8.mean < 0.1 * bare.mean,
        "{q8:?}, without the adapter {bare:?}"
    );

    // A model made from the GGUF has everything a folder needs.
    let text = std::fs::read_to_string(project.path("pipelines/p.yaml")).unwrap();
    project.write("pipelines/p.yaml", text.replace("models/tiny", "q.gguf"));
    project.run();
    project
        .flow(&["export", "--adapter", "b", "--merge", "from-gguf"])
        .success();
    let merged = load(&project.path("from-gguf"));
    let ids = merged
        .tokenizer
        .encode("<|im_start|>user\nWhat is 5 µm?<|im_end|>\n")
        .unwrap();
    assert_eq!(
        ids,
        load(&project.path("models/tiny"))
            .tokenizer
            .encode("<|im_start|>user\nWhat is 5 µm?<|im_end|>\n")
            .unwrap()
    );
    assert_eq!(merged.stop_ids(), load(&project.path("q.gguf")).stop_ids());
}

#[test]
fn what_cannot_be_exported_is_said() {
    let project = tuned();
    project.flow(&["export"]).code(2);
    project.write("there/file", "");
    let refused = project.flow(&["export", "--adapter", "there"]).code(2);
    insta::assert_snapshot!(refused.messages(), @r"
    error: `there` is there already
      help: remove it first, or name another place
    ");
    let refused = project
        .flow(&["export", "--node", "tran", "--adapter", "a"])
        .code(2);
    insta::assert_snapshot!(refused.messages(), @r"
    error: no node `tran` of the run [run] gave an adapter
      help: there are `train.fit`
    ");
    project
        .flow(&["run", "pipelines/p.yaml", "--only", "rows"])
        .success();
    let refused = project.flow(&["export", "--adapter", "a"]).code(2);
    insta::assert_snapshot!(refused.messages(), @r"
    error: the run [run] has trained nothing
      help: name a run that has an adapter: `flow runs` lists them, `flow show RUN` says what each gave
    ");
    // A base that is another one now would give another model.
    project.write(
        "models/tiny/generation_config.json",
        r#"{"eos_token_id": 1}"#,
    );
    let refused = project
        .flow(&["export", "latest~1", "--merge", "m"])
        .code(1);
    insta::assert_snapshot!(refused.messages(), @r"
    error: `models/tiny` is not the model that the run [run] trained
      help: its files have changed since: put the old ones back, or run the pipeline again
    ");
}
