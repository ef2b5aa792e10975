//! Response-only labels against the reference.

use super::{fixture_json, ids_of, smollm2};
use crate::lm::{Conversation, LmError, Message, prepare_examples};

fn message(value: &serde_json::Value) -> Message {
    let text = |key: &str| value[key].as_str().unwrap();
    Message::new(text("role"), text("content"))
}

#[test]
fn parity_g2_labels() {
    let model = smollm2();
    let cases = fixture_json("g2_labels_smollm2.json");
    let cases = cases.as_array().unwrap();
    let conversations: Vec<Conversation> = cases
        .iter()
        .map(|case| Conversation {
            id: case["case"].as_str().unwrap().to_owned(),
            messages: case["messages"]
                .as_array()
                .unwrap()
                .iter()
                .map(message)
                .collect(),
        })
        .collect();
    let prepared = prepare_examples(&model, &conversations, 1024).unwrap();
    assert_eq!((prepared.truncated, prepared.rejected.len()), (0, 0));
    for (example, case) in prepared.examples.iter().zip(cases) {
        assert_eq!(example.ids, ids_of(&case["ids"]), "{}", example.id);
        assert_eq!(example.labels, ids_of(&case["labels"]), "{}", example.id);
        let trained: Vec<i64> = example
            .labels
            .iter()
            .copied()
            .filter(|label| *label >= 0)
            .collect();
        assert_eq!(
            model.tokenizer.decode_with_specials(&trained).unwrap(),
            case["trained_text"].as_str().unwrap()
        );
    }
}

#[test]
fn rows_are_cut_counted_and_rejected() {
    let model = smollm2();
    let row = |id: &str, question: &str, answer: &str| Conversation {
        id: id.to_owned(),
        messages: vec![
            Message::system("S"),
            Message::user(question),
            Message::assistant(answer),
        ],
    };
    let long = "word ".repeat(40);
    let rows = [
        row("short", "q", "a"),
        row("long answer", "q", &long),
        row("long question", &long, "a"),
    ];
    let prepared = prepare_examples(&model, &rows, 30).unwrap();
    assert_eq!(prepared.truncated, 1);
    assert_eq!(prepared.rejected, ["long question"]);
    let cut = &prepared.examples[1];
    assert_eq!((cut.ids.len(), cut.id.as_str()), (30, "long answer"));
}

#[test]
fn a_conversation_without_a_response_is_rejected() {
    let model = smollm2();
    let rows = [Conversation {
        id: "open".to_owned(),
        messages: vec![Message::user("q")],
    }];
    let prepared = prepare_examples(&model, &rows, 1024).unwrap();
    assert_eq!(prepared.rejected, ["open"]);
}

#[test]
fn a_template_that_ends_no_turn_is_refused() {
    let mut model = smollm2();
    let source = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}";
    let endless = crate::lm::ChatTemplate::new(source, None, None).unwrap();
    // Other tests share the model.
    let own = model.template.replace(endless);
    let rows = [Conversation {
        id: "row 7".to_owned(),
        messages: vec![Message::user("q"), Message::assistant("a")],
    }];
    let outcome = prepare_examples(&model, &rows, 1024);
    model.template = own;
    let error = outcome.unwrap_err();
    assert!(matches!(error, LmError::Template(_)));
    assert!(error.to_string().contains("`row 7`"), "{error}");
}
