//! The judge: which of a few allowed answers does the model hold most likely after a prompt? One forward pass over many
//! prompts scores all answers exactly; nothing is generated or parsed.

use super::{LanguageModel, LmError, Scorer};

/// Scores answers to prompts that begin with the same text, whose keys and values are computed once.
pub struct Chooser<'a> {
    model: &'a LanguageModel,
    prefix_text: String,
    scorer: Scorer<'a>,
}

/// A prompt and its allowed answers, as tokens.
#[derive(Clone, Debug)]
pub struct Question {
    /// The whole prompt, the prefix included: tokens may straddle the seam.
    pub prompt: Vec<i64>,
    pub answers: Vec<Vec<i64>>,
}

/// The verdict on one prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// The most likely answer, the first of equals.
    pub index: usize,
    /// Its probability among the allowed answers.
    pub probability: f64,
    /// Natural log-probability of each answer under the whole vocabulary, in the order given.
    pub log_probabilities: Vec<f64>,
}

impl<'a> Chooser<'a> {
    /// # Errors
    /// [`LmError::Context`] if the prefix alone is too long.
    pub fn new(model: &'a LanguageModel, prefix_text: &str) -> Result<Self, LmError> {
        let prefix = model.tokenizer.encode(prefix_text)?;
        Ok(Self {
            model,
            prefix_text: prefix_text.to_owned(),
            scorer: Scorer::new(&model.decoder, &model.config, model.end_of_turn(), prefix)?,
        })
    }

    /// Scores `answers` as continuations of the prefix text followed by `rest_text`.
    ///
    /// # Errors
    /// As [`Scorer::choose_many`], inner errors included.
    pub fn choose<S: AsRef<str>>(&self, rest_text: &str, answers: &[S]) -> Result<Choice, LmError> {
        let tokenizer = &self.model.tokenizer;
        let question = Question {
            prompt: tokenizer.encode(&format!("{}{rest_text}", self.prefix_text))?,
            answers: answers
                .iter()
                .map(|answer| tokenizer.encode(answer.as_ref()))
                .collect::<Result<_, _>>()?,
        };
        self.choose_many(&[&question])?.swap_remove(0)
    }

    /// As [`Scorer::choose_many`].
    ///
    /// # Errors
    /// Those.
    pub fn choose_many(
        &self,
        questions: &[&Question],
    ) -> Result<Vec<Result<Choice, LmError>>, LmError> {
        self.scorer.choose_many(questions)
    }
}

impl Choice {
    /// The probability of each answer among the allowed ones.
    pub fn shares(&self) -> Vec<f64> {
        let best = self.log_probabilities[self.index];
        self.log_probabilities
            .iter()
            .map(|score| (score - best).exp() * self.probability)
            .collect()
    }

    pub(super) fn from_scores(log_probabilities: Vec<f64>) -> Result<Self, LmError> {
        if log_probabilities.iter().any(|score| score.is_nan()) {
            return Err(LmError::NotANumber);
        }
        let mut index = 0;
        for (candidate, score) in log_probabilities.iter().enumerate() {
            if *score > log_probabilities[index] {
                index = candidate;
            }
        }
        let best = log_probabilities[index];
        let total: f64 = log_probabilities
            .iter()
            .map(|score| (score - best).exp())
            .sum();
        Ok(Self {
            index,
            probability: 1.0 / total,
            log_probabilities,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_go_to_the_first() {
        let choice = Choice::from_scores(vec![-3.0, -1.0, -1.0]).unwrap();
        assert_eq!(choice.index, 1);
        assert!((choice.probability - 1.0 / (2.0 + (-2_f64).exp())).abs() < 1e-12);
    }

    #[test]
    fn scores_that_are_not_numbers_are_no_choice() {
        let error = Choice::from_scores(vec![-1.0, f64::NAN]).unwrap_err();
        insta::assert_snapshot!(error, @"the model's probabilities are not numbers");
    }
}
