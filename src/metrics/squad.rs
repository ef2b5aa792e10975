//! Exact match and token F1 as the official SQuAD v1.1 script computes them (Rajpurkar et al., 2016, arXiv:1606.05250).
//!
//! The rule differs from SQuAD 2.0 in one case: where both texts normalise to nothing, exact match is 1 and F1 is 0.

use std::collections::HashMap;

/// Lowercases, removes ASCII punctuation, replaces the words *a*, *an* and *the* by a space, and joins what is left with
/// single spaces, in this order.
pub fn normalize(text: &str) -> String {
    let bare: Vec<char> = text
        .to_lowercase()
        .chars()
        .filter(|c| !c.is_ascii_punctuation())
        .collect();
    let mut normalized = String::with_capacity(bare.len());
    let mut pending_space = false;
    let mut at = 0;
    while at < bare.len() {
        let boundary = at == 0 || !is_word(bare[at - 1]);
        if boundary && let Some(length) = article(&bare[at..]) {
            pending_space = true;
            at += length;
            continue;
        }
        if is_space(bare[at]) {
            pending_space = true;
        } else {
            if pending_space && !normalized.is_empty() {
                normalized.push(' ');
            }
            pending_space = false;
            normalized.push(bare[at]);
        }
        at += 1;
    }
    normalized
}

/// 1 if both texts normalise to the same, else 0.
pub fn exact_match(prediction: &str, reference: &str) -> f64 {
    f64::from(u8::from(normalize(prediction) == normalize(reference)))
}

/// The harmonic mean of precision and recall over the bags of normalised tokens, in 0..=1.
pub fn f1(prediction: &str, reference: &str) -> f64 {
    let (prediction, reference) = (normalize(prediction), normalize(reference));
    let (mut predicted, mut expected, mut same) = (0_u32, 0_u32, 0_u32);
    let mut left: HashMap<&str, u32> = HashMap::new();
    for token in reference.split(' ').filter(|token| !token.is_empty()) {
        *left.entry(token).or_default() += 1;
        expected += 1;
    }
    for token in prediction.split(' ').filter(|token| !token.is_empty()) {
        predicted += 1;
        if let Some(count) = left.get_mut(token).filter(|count| **count > 0) {
            *count -= 1;
            same += 1;
        }
    }
    if same == 0 {
        return 0.0;
    }
    let precision = f64::from(same) / f64::from(predicted);
    let recall = f64::from(same) / f64::from(expected);
    (2.0 * precision * recall) / (precision + recall)
}

/// [`exact_match`] with the reference that fits best; 0 without references.
pub fn exact_match_best<R: AsRef<str>>(prediction: &str, references: &[R]) -> f64 {
    best(references, |reference| exact_match(prediction, reference))
}

/// [`f1`] with the reference that fits best; 0 without references.
pub fn f1_best<R: AsRef<str>>(prediction: &str, references: &[R]) -> f64 {
    best(references, |reference| f1(prediction, reference))
}

fn best<R: AsRef<str>>(references: &[R], score: impl Fn(&str) -> f64) -> f64 {
    references
        .iter()
        .map(|reference| score(reference.as_ref()))
        .fold(0.0, f64::max)
}

/// The length of the article that `text` begins with and that ends at a word boundary.
fn article(text: &[char]) -> Option<usize> {
    let is_article = |word: &str| {
        let length = word.len();
        let starts = text.len() >= length && word.chars().zip(text).all(|(a, b)| a == *b);
        starts && text.get(length).is_none_or(|next| !is_word(*next))
    };
    ["a", "an", "the"]
        .into_iter()
        .find(|word| is_article(word))
        .map(str::len)
}

/// A word character of Python's `re`: a letter, a number or `_`.
///
/// Rust's `is_alphabetic` also counts signs that are no letters by category; the ones that occur with Latin text are
/// taken out here.
fn is_word(c: char) -> bool {
    let sign = matches!(c, '\u{345}' | '\u{363}'..='\u{36f}' | '\u{24b6}'..='\u{24e9}' | '\u{1f130}'..='\u{1f149}'
        | '\u{1f150}'..='\u{1f169}' | '\u{1f170}'..='\u{1f189}');
    c == '_' || (c.is_alphanumeric() && !sign)
}

/// White space of Python's `str.split`, which also splits at the ASCII separators U+001C to U+001F.
fn is_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\u{1c}'..='\u{1f}')
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use serde::Deserialize;

    use super::*;
    use crate::metrics::mean;

    #[derive(Deserialize)]
    struct Fixture {
        pairs: Vec<Pair>,
        multi_gold: Vec<MultiGold>,
        corpus: Corpus,
    }

    #[derive(Deserialize)]
    struct Pair {
        prediction: String,
        gold: String,
        norm_prediction: String,
        norm_gold: String,
        em: f64,
        f1: f64,
    }

    #[derive(Deserialize)]
    struct MultiGold {
        prediction: String,
        golds: Vec<String>,
        em: f64,
        f1: f64,
    }

    #[derive(Deserialize)]
    struct Corpus {
        em: f64,
        f1: f64,
    }

    fn fixture() -> Fixture {
        let default = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        let folder = std::env::var_os("FLOW_FIXTURES").map_or_else(default, PathBuf::from);
        let path = [folder.join("lm/e_squad.json"), folder.join("e_squad.json")]
            .into_iter()
            .find(|path| path.exists());
        let path = path.unwrap_or_else(|| panic!("no e_squad.json in {}", folder.display()));
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    }

    /// Equal but for the last bit, which `serde_json` may misread.
    fn same(a: f64, b: f64) -> bool {
        (a - b).abs() <= f64::EPSILON
    }

    #[test]
    fn parity_e_squad() {
        let Fixture {
            pairs,
            multi_gold,
            corpus,
        } = fixture();
        for pair in &pairs {
            assert_eq!(
                normalize(&pair.prediction),
                pair.norm_prediction,
                "{:?}",
                pair.prediction
            );
            assert_eq!(normalize(&pair.gold), pair.norm_gold, "{:?}", pair.gold);
            assert_eq!(
                exact_match(&pair.prediction, &pair.gold),
                pair.em,
                "{:?} {:?}",
                pair.prediction,
                pair.gold
            );
            assert!(
                same(f1(&pair.prediction, &pair.gold), pair.f1),
                "{:?} {:?}",
                pair.prediction,
                pair.gold
            );
        }
        for case in &multi_gold {
            assert_eq!(
                exact_match_best(&case.prediction, &case.golds),
                case.em,
                "{:?}",
                case.prediction
            );
            assert!(
                same(f1_best(&case.prediction, &case.golds), case.f1),
                "{:?}",
                case.prediction
            );
        }
        let total = |score: fn(&str, &str) -> f64| {
            100.0
                * mean(
                    &pairs
                        .iter()
                        .map(|pair| score(&pair.prediction, &pair.gold))
                        .collect::<Vec<_>>(),
                )
        };
        assert_eq!((pairs.len(), multi_gold.is_empty()), (200, false));
        assert!((total(exact_match) - corpus.em).abs() < 1e-9);
        assert!((total(f1) - corpus.f1).abs() < 1e-9);
    }

    #[test]
    fn articles_are_whole_words() {
        assert_eq!(
            normalize("The  theatre, an a-team; THE\u{1c}end"),
            "theatre ateam end"
        );
        assert_eq!(normalize("x_a the"), "xa");
        assert_eq!(normalize("an"), "");
    }
}
