//! "Did you mean": the closest of the names that would have been right.

/// The candidate closest to `word`, if one is close enough to be what was meant.
pub fn closest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase();
    let distance = |candidate: &str| {
        let candidate = candidate.to_lowercase();
        let shortened = word.len() >= 3
            && (candidate.starts_with(&word)
                || word.starts_with(&candidate) && candidate.len() >= 3);
        let edits = strsim::damerau_levenshtein(&word, &candidate);
        let close = edits
            <= if word.len() < 2 {
                0
            } else {
                word.chars().count().max(3) / 3
            };
        (shortened || close || letters(&word) == letters(&candidate)).then_some(edits)
    };
    candidates
        .into_iter()
        .filter_map(|candidate| Some((distance(candidate)?, candidate)))
        .min()
        .map(|(_, candidate)| candidate)
}

fn letters(word: &str) -> Vec<char> {
    let mut letters: Vec<_> = word.chars().collect();
    letters.sort_unstable();
    letters
}

/// Names in backticks, for "there are: `a`, `b`".
pub fn list<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    const MOST: usize = 20;
    let names: Vec<_> = names.into_iter().collect();
    let mut text = names
        .iter()
        .take(MOST)
        .map(|name| format!("`{name}`"))
        .collect::<Vec<_>>()
        .join(", ");
    if names.len() > MOST {
        text.push_str(&format!(" and {} more", names.len() - MOST));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guesses_only_what_is_close() {
        let known = ["question", "answer", "question_type"];
        assert_eq!(closest("qestion", known), Some("question"));
        assert_eq!(closest("Question", known), Some("question"));
        assert_eq!(closest("ques", known), Some("question"));
        assert_eq!(closest("text", known), None);
        assert_eq!(closest("x", known), None);
        assert_eq!(closest("whit", ["uses", "with"]), Some("with"));
        assert_eq!(closest("q", ["a", "b"]), None);
    }
}
