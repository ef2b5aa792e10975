//! A project whose latest run has trained the tiny model.

use super::Project;

const PIPELINE: &str = r#"
name: tuned
seed: 3
models:
  tiny: { path: models/tiny }
stages:
  rows: { uses: source, with: { path: rows.jsonl } }
  train:
    uses: qlora-train
    inputs: { train: rows, validation: rows }
    with:
      model: tiny
      chat: { system: "Answer in short.", user: "{{ question }}", response: answer }
      lora: { r: 4, alpha: 8 }
      learning_rate: 0.02
      batch_size: 4
      gradient_accumulation: 1
      epochs: 4
      max_length: 256
"#;

pub fn tuned() -> Project {
    let rows: String = (0..12)
        .map(|index| {
            format!("{{\"id\": \"r{index}\", \"question\": \"What is case {index}?\", \"answer\": \"Case {index} is mild.\"}}\n")
        })
        .collect();
    let project = Project::with_pipeline(PIPELINE)
        .file("rows.jsonl", &rows)
        .with_tiny_model()
        // Other tests run beside; threads that wait must not keep the cores from them.
        .variable("OMP_WAIT_POLICY", "passive");
    project.run();
    project
}
