//! Names of axes and values that are short and still tell one from another.

use crate::config::yaml::{Kind, Yaml};

const MOST: usize = 24;

/// For each dotted key the shortest ending, of whole parts, that no other key has.
pub fn names(keys: &[&str]) -> Vec<String> {
    let ending = |key: &str, parts: usize| {
        let all: Vec<&str> = key.split('.').collect();
        all[all.len().saturating_sub(parts)..].join(".")
    };
    let name = |key: &&str| {
        let parts = key.split('.').count();
        let is_unique = |parts: &usize| {
            let own = ending(key, *parts);
            keys.iter()
                .all(|other| other == key || ending(other, *parts) != own)
        };
        ending(key, (1..parts).find(is_unique).unwrap_or(parts))
    };
    keys.iter().map(name).collect()
}

/// The label of each value of an axis.
pub(super) fn values(values: &[Yaml]) -> Vec<String> {
    let mut labels: Vec<String> = Vec::with_capacity(values.len());
    for (place, value) in values.iter().enumerate() {
        let label = match &value.kind {
            Kind::Null => "null".to_owned(),
            Kind::Bool(value) => value.to_string(),
            Kind::Number(number) => number.to_string(),
            Kind::Text(text) => of_text(text),
            Kind::List(_) | Kind::Map(_) => String::new(),
        };
        let is_free = !label.is_empty() && !labels.contains(&label);
        labels.push(if is_free {
            label
        } else {
            format!("{label}#{}", place + 1)
        });
    }
    labels
}

/// Labels become parts of node names, which are typed in a shell.
fn of_text(text: &str) -> String {
    let plain = |letter: char| {
        if letter.is_ascii_alphanumeric() || "._+-".contains(letter) {
            letter
        } else {
            '-'
        }
    };
    let label: String = text.trim().chars().take(MOST).map(plain).collect();
    label.trim_matches('-').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Span;

    #[test]
    fn names_are_as_short_as_they_can_be() {
        assert_eq!(
            names(&["train.with.lora.r", "train.with.learning_rate", "seed"]),
            ["r", "learning_rate", "seed"]
        );
        assert_eq!(
            names(&["a.with.limit", "b.with.limit", "models.base"]),
            ["a.with.limit", "b.with.limit", "base"]
        );
    }

    #[test]
    fn labels_differ_and_fit_into_names() {
        let text = |text: &str| Yaml::new(Kind::Text(text.to_owned()), Span::start_of(0));
        let list = Yaml::new(Kind::List(Vec::new()), Span::start_of(0));
        let labels = values(&[
            text("a b/c"),
            text("a.b-c"),
            text("a-b-c"),
            text("???"),
            list,
            Yaml::new(Kind::Number(8.into()), Span::start_of(0)),
        ]);
        assert_eq!(labels, ["a-b-c", "a.b-c", "a-b-c#3", "#4", "#5", "8"]);
    }
}
