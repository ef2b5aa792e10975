//! Whether more of a metric is better, as far as its name says.

const MORE: [&str; 14] = [
    "f1",
    "exact",
    "accuracy",
    "acc",
    "precision",
    "recall",
    "bleu",
    "rouge",
    "rouge1",
    "rouge2",
    "rougel",
    "similarity",
    "auc",
    "reward",
];
const LESS: [&str; 9] = [
    "loss",
    "perplexity",
    "ppl",
    "error",
    "errors",
    "wer",
    "cer",
    "mae",
    "rmse",
];

/// `None` where the name does not tell.
pub fn more_is_better(metric: &str) -> Option<bool> {
    let name = metric.rsplit('.').next().unwrap_or(metric).to_lowercase();
    let mut words = name.split(|letter: char| !letter.is_alphanumeric());
    words.find_map(|word| {
        let is_one_of = |names: &[&str]| names.contains(&word);
        match (is_one_of(&MORE), is_one_of(&LESS)) {
            (true, _) => Some(true),
            (_, true) => Some(false),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::more_is_better;

    #[test]
    fn names_tell_or_do_not() {
        assert_eq!(more_is_better("evaluate.summary.f1_tuned"), Some(true));
        assert_eq!(more_is_better("score.exact_match"), Some(true));
        assert_eq!(more_is_better("train.best_validation_loss"), Some(false));
        // The name of the node does not count, nor does a part of a word.
        assert_eq!(more_is_better("loss.rows"), None);
        assert_eq!(more_is_better("glossary"), None);
    }
}
