//! The allowed answers of a judge as token sequences that one forward pass can score.

use super::LmError;

/// Which tokens must follow the prompt so that every answer can be scored.
///
/// Beginnings that answers share are computed once: `paths` are the longest sequences that need to be fed, and each
/// one sees the prompt and itself.
#[derive(Debug)]
pub(super) struct AnswerTree {
    pub(super) paths: Vec<Vec<i64>>,
    /// Per answer its steps: (row, token) whose log-probabilities are summed. Row 0 follows the prompt, the others follow
    /// the tokens of the paths in order.
    pub(super) steps: Vec<Vec<(usize, i64)>>,
}

impl AnswerTree {
    /// Where one answer begins with the whole of another, `end_of_turn` counts as one more token of every answer.
    ///
    /// # Errors
    /// [`LmError::Choices`] for answers that cannot be told apart.
    pub(super) fn new<A: AsRef<[i64]>>(
        answers: &[A],
        end_of_turn: Option<i64>,
    ) -> Result<Self, LmError> {
        let answers: Vec<&[i64]> = answers.iter().map(AsRef::as_ref).collect();
        if answers.is_empty() {
            return Err(LmError::Choices("there are none".into()));
        }
        for (index, answer) in answers.iter().enumerate() {
            if answer.is_empty() {
                return Err(LmError::Choices(format!("answer {index} is empty")));
            }
            if let Some(earlier) = answers[..index].iter().position(|other| other == answer) {
                return Err(LmError::Choices(format!(
                    "answers {earlier} and {index} are equal"
                )));
            }
        }
        let nested = answers.iter().any(|answer| {
            answers
                .iter()
                .any(|other| other.len() > answer.len() && other.starts_with(answer))
        });
        let end = match (nested, end_of_turn) {
            (false, _) => None,
            (true, Some(end)) => Some(end),
            (true, None) => {
                let reason = "one begins with another, and the model has no end-of-turn token";
                return Err(LmError::Choices(reason.into()));
            }
        };
        // The last token of an answer is only looked up, unless the end of the turn comes after it.
        let fed: Vec<&[i64]> = answers
            .iter()
            .map(|answer| &answer[..answer.len() - usize::from(end.is_none())])
            .collect();
        let paths = longest(&fed);
        let steps = answers
            .iter()
            .map(|answer| {
                let tokens = answer.iter().copied().chain(end);
                let row = |at| row_after(&paths, &answer[..at]);
                tokens
                    .enumerate()
                    .map(|(at, token)| (row(at), token))
                    .collect()
            })
            .collect();
        let paths = paths.into_iter().map(<[i64]>::to_vec).collect();
        Ok(Self { paths, steps })
    }

    /// Tokens of the longest path.
    pub(super) fn depth(&self) -> usize {
        self.paths.iter().map(Vec::len).max().unwrap_or(0)
    }

    /// Rows beside row 0.
    pub(super) fn tokens(&self) -> usize {
        self.paths.iter().map(Vec::len).sum()
    }
}

/// The sequences that no other one begins with, each once.
fn longest<'a>(fed: &[&'a [i64]]) -> Vec<&'a [i64]> {
    let mut paths: Vec<&[i64]> = Vec::new();
    for &sequence in fed {
        let covered = |by: &&[i64]| by.len() > sequence.len() && by.starts_with(sequence);
        if !sequence.is_empty() && !fed.iter().any(covered) && !paths.contains(&sequence) {
            paths.push(sequence);
        }
    }
    paths
}

/// The row whose state follows `fed`: the first path that begins with it has one.
fn row_after(paths: &[&[i64]], fed: &[i64]) -> usize {
    if fed.is_empty() {
        return 0;
    }
    let mut before = 0;
    for path in paths {
        if path.starts_with(fed) {
            return before + fed.len();
        }
        before += path.len();
    }
    unreachable!("every beginning of an answer is on a path")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn single_tokens_need_no_paths() {
        let tree = AnswerTree::new(&[vec![5], vec![6]], None).unwrap();
        assert!(tree.paths.is_empty());
        assert_eq!(tree.steps, [[(0, 5)], [(0, 6)]]);
    }

    #[test]
    fn answers_share_their_beginnings() {
        let tree = AnswerTree::new(&[vec![5, 1, 2], vec![5, 1, 3], vec![7]], None).unwrap();
        assert_eq!(tree.paths, [[5, 1]]);
        assert_eq!(tree.steps[1], [(0, 5), (1, 1), (2, 3)]);
        assert_eq!((tree.depth(), tree.tokens()), (2, 2));
    }

    #[test]
    fn nested_answers_end_their_turn() {
        let answers = [vec![1], vec![1, 2]];
        assert!(AnswerTree::new(&answers, None).is_err());
        let tree = AnswerTree::new(&answers, Some(9)).unwrap();
        assert_eq!(tree.paths, [[1, 2]]);
        assert_eq!(
            tree.steps,
            [vec![(0, 1), (1, 9)], vec![(0, 1), (1, 2), (2, 9)]]
        );
    }

    #[test]
    fn rows_of_a_later_path_come_after_those_of_the_first() {
        let tree = AnswerTree::new(&[vec![1, 2, 3], vec![4, 5]], None).unwrap();
        assert_eq!(tree.paths, [vec![1, 2], vec![4]]);
        assert_eq!(tree.steps[1], [(0, 4), (3, 5)]);
    }

    #[test]
    fn refuses_answers_that_cannot_be_told_apart() {
        let error = |answers: &[Vec<i64>]| AnswerTree::new(answers, None).unwrap_err().to_string();
        insta::assert_snapshot!(error(&[]), @"the allowed answers cannot be used: there are none");
        insta::assert_snapshot!(error(&[vec![1], vec![]]), @"the allowed answers cannot be used: answer 1 is empty");
        insta::assert_snapshot!(error(&[vec![1], vec![2], vec![1]]), @"the allowed answers cannot be used: answers 0 and 2 are equal");
    }
}
