//! Chat templates rendered, and text tokenised, as transformers does.

use serde_json::Value;

use super::{fixture_json, shared_fixture, smollm2};
use crate::lm::ChatTemplate;

#[test]
fn parity_g_smollm2_tokens() {
    let model = smollm2();
    let tokenizer = &model.tokenizer;
    for case in fixture_json("g_smollm2_tokens.json").as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        let ids = tokenizer.encode(text).unwrap();
        assert_eq!(Value::from(ids.clone()), case["ids"], "{text:?}");
        assert_eq!(
            tokenizer.decode_with_specials(&ids).unwrap(),
            case["decoded"],
            "{text:?}"
        );
    }
}

/// The conversations that become training examples, rendered with the template inside the GGUF.
#[test]
fn parity_g2_conversation_tokens() {
    let model = smollm2();
    let template = model.template.as_ref().unwrap();
    for case in fixture_json("g2_labels_smollm2.json").as_array().unwrap() {
        let text = template
            .render(case["messages"].as_array().unwrap(), false)
            .unwrap();
        let ids = model.tokenizer.encode(&text).unwrap();
        assert_eq!(Value::from(ids), case["ids"], "{}", case["case"]);
    }
}

/// Runs where the templates of other makers are at hand; they are not part of this repository.
#[test]
fn parity_g_chat_templates() {
    let Some(cases) = shared_fixture("g_chat_templates.json") else {
        return;
    };
    let cases: Value = serde_json::from_slice(&std::fs::read(cases).unwrap()).unwrap();
    for case in cases.as_array().unwrap() {
        let name = case["template"].as_str().unwrap();
        let path = shared_fixture(&format!("g_{name}.jinja")).unwrap();
        let source = std::fs::read_to_string(path).unwrap();
        let template = ChatTemplate::new(&source, None, None).unwrap();
        let rendered = template.render_with_tools(
            case["messages"].as_array().unwrap(),
            case["tools"].as_array(),
            case["add_generation_prompt"].as_bool().unwrap(),
        );
        assert_eq!(
            rendered.unwrap(),
            case["rendered"],
            "{name} {}",
            case["case"]
        );
    }
}
