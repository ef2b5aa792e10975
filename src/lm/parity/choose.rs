//! The judge against plain forward passes, one per answer, with the real SmolLM2.

use tch::Kind;

use super::smollm2;
use crate::lm::{Batch, Choice, Chooser, LanguageModel, Message, Question};

/// The log-probability of each answer, computed the long way.
fn one_by_one(model: &LanguageModel, prompt: &str, answers: &[&str], end: bool) -> Vec<f64> {
    let prompt = model.tokenizer.encode(prompt).unwrap();
    let score = |answer: &&str| {
        let mut ids = prompt.clone();
        ids.extend(model.tokenizer.encode(answer).unwrap());
        ids.extend(end.then(|| model.end_of_turn().unwrap()));
        let batch = Batch::pack(&[&ids], model.decoder.placement().device);
        let logits = model.decoder.logits(&model.decoder.forward(&batch));
        let table = logits.log_softmax(1, Kind::Double);
        (prompt.len()..ids.len())
            .map(|at| table.double_value(&[at as i64 - 1, ids[at]]))
            .sum()
    };
    answers.iter().map(score).collect()
}

fn assert_equal(found: &Choice, expected: &[f64]) {
    for (found, expected) in found.log_probabilities.iter().zip(expected) {
        assert!(
            (found - expected).abs() < 1e-3,
            "{found} instead of {expected}"
        );
    }
    let best = expected.iter().copied().fold(f64::MIN, f64::max);
    assert_eq!(expected[found.index], best);
    let total: f64 = expected.iter().map(|score| (score - best).exp()).sum();
    assert!((found.probability - 1.0 / total).abs() < 1e-3);
}

#[test]
fn chooser_equals_plain_scoring() {
    let model = smollm2();
    let question = "Which number do you like? 0, 1, 2, 10 or 12?";
    let prompt = model
        .render(&[Message::system("Answer."), Message::user(question)], true)
        .unwrap();
    let (prefix, rest) = prompt.split_at(prompt.find("number").unwrap() + 3);
    let chooser = Chooser::new(&model, prefix).unwrap();

    let single = ["0", "1", "2"];
    let found = chooser.choose(rest, &single).unwrap();
    assert_equal(&found, &one_by_one(&model, &prompt, &single, false));

    let nested = ["0", "1", "2", "10", "12"];
    let found = chooser.choose(rest, &nested).unwrap();
    assert_equal(&found, &one_by_one(&model, &prompt, &nested, true));
    // The prefix is not worn out by use.
    assert_eq!(chooser.choose(rest, &nested).unwrap(), found);

    let words = ["not relevant", "not useful", "relevant"];
    let found = chooser.choose(rest, &words).unwrap();
    assert_equal(&found, &one_by_one(&model, &prompt, &words, false));

    let plain = Chooser::new(&model, "").unwrap();
    assert_equal(
        &plain.choose(&prompt, &single).unwrap(),
        &one_by_one(&model, &prompt, &single, false),
    );
    assert!(plain.choose("", &single).is_err());
    insta::assert_snapshot!(plain.choose(&"a ".repeat(9000), &single).unwrap_err(), @"9001 tokens do not fit into the context of 8192");
}

#[test]
fn questions_scored_together_are_scored_as_alone() {
    let model = smollm2();
    let prefix = "Here is a question. ";
    let chooser = Chooser::new(&model, prefix).unwrap();
    let encode = |text: &str| model.tokenizer.encode(text).unwrap();
    let prompts = [
        "Yes or no?",
        "Is it 1, 12 or 3, and how do you know that? ",
        "Well?",
    ];
    let answers = [&["yes", "no"][..], &["1", "12", "3"], &["not a", "not b"]];
    let mut questions: Vec<Question> = prompts
        .iter()
        .zip(answers)
        .map(|(rest, answers)| Question {
            prompt: encode(&format!("{prefix}{rest}")),
            answers: answers.iter().map(|answer| encode(answer)).collect(),
        })
        .collect();
    questions.push(Question {
        prompt: Vec::new(),
        answers: vec![vec![1]],
    });
    let all: Vec<&Question> = questions.iter().collect();
    let together = chooser.choose_many(&all).unwrap();
    for ((rest, answers), found) in prompts.iter().zip(answers).zip(&together) {
        let alone = chooser.choose(rest, answers).unwrap();
        assert_equal(found.as_ref().unwrap(), &alone.log_probabilities);
    }
    insta::assert_snapshot!(together[3].as_ref().unwrap_err(), @"the prompt cannot be used: it is empty");
}
