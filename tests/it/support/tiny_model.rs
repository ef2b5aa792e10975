//! A language model small enough for tests: random weights of the fixture `tiny_llama` behind a tokenizer of single bytes.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::Project;

/// Where [`Project::with_tiny_model`] puts it.
pub const FOLDER: &str = "models/tiny";

const TEMPLATE: &str = "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}\
                        {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
const SPECIALS: [&str; 3] = ["<pad>", "<|im_start|>", "<|im_end|>"];

impl Project {
    pub fn with_tiny_model(self) -> Self {
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny_llama");
        let read = |name: &str| std::fs::read(fixture.join(name)).expect("the fixture is there");
        let mut config: Value =
            serde_json::from_slice(&read("config.json")).expect("the fixture is JSON");
        // Rotary positions have no end; prompts in bytes are long.
        config["max_position_embeddings"] = json!(4096);
        let tokenizer = json!({ "eos_token": "<|im_end|>", "chat_template": TEMPLATE });
        self.write(
            &format!("{FOLDER}/model.safetensors"),
            read("model.safetensors"),
        );
        for (name, value) in [
            ("config.json", config),
            ("tokenizer_config.json", tokenizer),
            ("tokenizer.json", tokenizer_json()),
        ] {
            self.write(&format!("{FOLDER}/{name}"), value.to_string());
        }
        self
    }
}

fn tokenizer_json() -> Value {
    let letters = (0..=255).map(|byte| letter(byte).to_string());
    let tokens = SPECIALS.map(str::to_owned).into_iter().chain(letters);
    let vocab: Map<String, Value> = tokens
        .zip(0..)
        .map(|(token, id)| (token, json!(id)))
        .collect();
    let specials: Vec<Value> = SPECIALS
        .iter()
        .zip(0..)
        .map(|(token, id)| {
            json!({ "id": id, "content": token, "special": true, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false })
        })
        .collect();
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": specials,
        "normalizer": null,
        "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true },
        "post_processor": null,
        "decoder": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true },
        "model": { "type": "BPE", "vocab": vocab, "merges": [] },
    })
}

/// The letter that stands for a byte in byte-level BPE: itself where it is visible, else one from U+0100 on.
fn letter(byte: u8) -> char {
    let visible = |byte: u8| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    if visible(byte) {
        return char::from(byte);
    }
    let place = (0..byte).filter(|&other| !visible(other)).count() as u32;
    char::from_u32(256 + place).expect("a letter of the Latin extensions")
}
