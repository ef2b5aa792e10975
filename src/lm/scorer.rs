//! Scoring the answers of many questions with few forward passes: batches by a budget of tokens, of alike lengths.

use std::cmp::Reverse;

use tch::{Kind, Tensor};

use super::answer_tree::AnswerTree;
use super::attention::Varlen;
use super::choose::{Choice, Question};
use super::choose_batch::ChooseBatch;
use super::{Decoder, LmError, ModelConfig, guard};

/// Scores answers by tokens alone; the keys and values of what prompts begin with are computed once.
pub struct Scorer<'a> {
    decoder: &'a Decoder,
    /// Tokens that fit.
    limit: usize,
    end_of_turn: Option<i64>,
    prefix: Vec<i64>,
    /// Per layer keys and values of the prefix, each [P, kv_heads, D].
    cache: Vec<(Tensor, Tensor)>,
}

/// A question that can be answered: what of it is computed, and how its rows become scores.
pub(super) struct Asked {
    /// Its place among the questions.
    index: usize,
    pub(super) prompt: Vec<i64>,
    pub(super) tree: AnswerTree,
    /// Tokens whose keys and values the prefix has.
    pub(super) shared: usize,
}

impl Asked {
    /// A prompt of at least one token.
    pub(super) fn new(index: usize, prompt: Vec<i64>, tree: AnswerTree, prefix: &[i64]) -> Self {
        // The last token of the prompt is always computed: its state gives the answers' first tokens.
        let pairs = prompt[1..].iter().zip(&prompt).zip(prefix);
        let shared = pairs.take_while(|((_, a), b)| a == b).count();
        Self {
            index,
            prompt,
            tree,
            shared,
        }
    }

    /// Rows of the forward pass.
    fn tokens(&self) -> usize {
        self.prompt.len() - self.shared + self.tree.tokens()
    }
}

impl<'a> Scorer<'a> {
    /// `prefix`: the tokens that most prompts begin with.
    ///
    /// # Errors
    /// [`LmError::Context`] if the prefix alone is too long.
    pub fn new(
        decoder: &'a Decoder,
        config: &ModelConfig,
        end_of_turn: Option<i64>,
        prefix: Vec<i64>,
    ) -> Result<Self, LmError> {
        let limit = usize::try_from(config.context).unwrap_or(usize::MAX);
        if prefix.len() > limit {
            return Err(LmError::Context {
                tokens: prefix.len(),
                limit,
            });
        }
        let cache = match prefix.is_empty() {
            true => Vec::new(),
            false => guard(|| tch::no_grad(|| prefix_cache(decoder, &prefix)))?,
        };
        Ok(Self {
            decoder,
            limit,
            end_of_turn,
            prefix,
            cache,
        })
    }

    /// Scores the answers of many questions, several to a forward pass. A question that cannot be answered gets its
    /// own error: [`LmError::Choices`] for no, empty or equal answers; [`LmError::Context`] for a prompt that is too long;
    /// [`LmError::Prompt`] for an empty one; [`LmError::NotANumber`] from damaged weights.
    ///
    /// An answer's score is the sum of the log-probabilities of its tokens. Where one answer begins with the whole of
    /// another (`1` and `12`), the end of the turn counts as one more token of every answer. In bf16 a score depends on
    /// the questions computed beside it by about the rounding of one matrix product, which may be split otherwise.
    ///
    /// # Errors
    /// [`LmError::Torch`] where a whole batch failed.
    pub fn choose_many(
        &self,
        questions: &[&Question],
    ) -> Result<Vec<Result<Choice, LmError>>, LmError> {
        let mut found: Vec<Option<Result<Choice, LmError>>> =
            questions.iter().map(|_| None).collect();
        let mut asked = Vec::new();
        for (index, question) in questions.iter().enumerate() {
            match self.ask(index, question) {
                Ok(one) => asked.push(one),
                Err(error) => found[index] = Some(Err(error)),
            }
        }
        // Alike lengths together; the longest first shows at once whether the memory is enough.
        asked.sort_by_key(|one| Reverse(one.tokens()));
        let mut todo = batches(asked, self.tokens_at_once());
        todo.reverse();
        // A batch is read when the next one is under way, so a GPU does not wait for the host.
        let mut under_way: Option<(Vec<Asked>, Tensor)> = None;
        while let Some(batch) = todo.pop() {
            match self.start(&batch) {
                Ok(table) => {
                    if let Some((batch, table)) = under_way.replace((batch, table)) {
                        finish(&batch, &table, &mut found)?;
                    }
                }
                Err(error) if error.is_out_of_memory() && batch.len() > 1 => {
                    let mut first = batch;
                    let second = first.split_off(first.len() / 2);
                    todo.extend([second, first]);
                }
                Err(error) => return Err(error),
            }
        }
        if let Some((batch, table)) = under_way {
            finish(&batch, &table, &mut found)?;
        }
        Ok(found
            .into_iter()
            .map(|choice| choice.expect("every question was asked or refused"))
            .collect())
    }

    /// How many rows one forward pass takes: what keeps the device busy.
    fn tokens_at_once(&self) -> usize {
        match self.decoder.placement().is_cpu() {
            true => 4096,
            false => 32_768,
        }
    }

    fn ask(&self, index: usize, question: &Question) -> Result<Asked, LmError> {
        let tree = AnswerTree::new(&question.answers, self.end_of_turn)?;
        let prompt = question.prompt.clone();
        let limit = self.limit;
        let tokens = prompt.len() + tree.depth();
        if tokens > limit {
            return Err(LmError::Context { tokens, limit });
        }
        if prompt.is_empty() {
            return Err(LmError::Prompt("it is empty".into()));
        }
        Ok(Asked::new(index, prompt, tree, &self.prefix))
    }

    /// The log-probability of every step of every answer, f32 [steps of all questions in order], on the device.
    fn start(&self, batch: &[Asked]) -> Result<Tensor, LmError> {
        let decoder = self.decoder;
        guard(|| {
            tch::no_grad(|| {
                let packed = ChooseBatch::new(batch, decoder.placement(), self.prefix.len())?;
                let hidden = decoder.infer(
                    &packed.ids,
                    &packed.positions,
                    &packed.kept,
                    |layer, q, k, v| packed.attend(q, k, v, self.cache.get(layer)),
                )?;
                let table = decoder.logits(&hidden).log_softmax(1, Kind::Float);
                Ok(table
                    .flatten(0, 1)
                    .index_select(0, &packed.picked(decoder.vocab())))
            })
        })
    }
}

/// Cuts questions into batches of at most `limit` tokens, or one question.
fn batches(asked: Vec<Asked>, limit: usize) -> Vec<Vec<Asked>> {
    let mut batches: Vec<Vec<Asked>> = Vec::new();
    let mut tokens = 0;
    for one in asked {
        tokens += one.tokens();
        match batches.last_mut() {
            Some(batch) if tokens <= limit => batch.push(one),
            _ => {
                tokens = one.tokens();
                batches.push(vec![one]);
            }
        }
    }
    batches
}

fn finish(
    batch: &[Asked],
    table: &Tensor,
    found: &mut [Option<Result<Choice, LmError>>],
) -> Result<(), LmError> {
    // Waits for the device, so errors of kernels show here.
    let picked = guard(|| Ok(Vec::<f32>::try_from(table)?))?;
    let mut picked = picked.into_iter().map(f64::from);
    for one in batch {
        let scores = one.tree.steps.iter().map(|steps| {
            let steps = picked.by_ref().take(steps.len());
            steps.sum::<f64>()
        });
        found[one.index] = Some(Choice::from_scores(scores.collect()));
    }
    Ok(())
}

fn prefix_cache(decoder: &Decoder, prefix: &[i64]) -> Result<Vec<(Tensor, Tensor)>, LmError> {
    let placement = decoder.placement();
    let length = prefix.len() as i64;
    let ids = Tensor::from_slice(prefix).to_device(placement.device);
    let positions = Tensor::arange(length, (Kind::Int64, placement.device));
    let varlen = Varlen::new(&[length], &[length], placement)?;
    let mut cache = Vec::new();
    let last = Tensor::from_slice(&[length - 1]).to_device(placement.device);
    let _ = decoder.infer(&ids, &positions, &last, |_, q, k, v| {
        // Copies: both are views of one larger tensor that should not outlive the layer.
        cache.push((k.contiguous(), v.contiguous()));
        varlen.attend(q, k, v)
    })?;
    Ok(cache)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_keep_to_the_limit_where_they_can() {
        let one = |tokens: usize| Asked {
            index: 0,
            prompt: vec![0; tokens + 2],
            tree: AnswerTree::new(&[[1]], None).unwrap(),
            shared: 2,
        };
        let sizes = |lengths: &[usize]| -> Vec<usize> {
            let asked = lengths.iter().map(|&length| one(length)).collect();
            batches(asked, 10).iter().map(Vec::len).collect()
        };
        assert_eq!(sizes(&[12, 6, 4, 3]), [1, 2, 1]);
        assert!(sizes(&[]).is_empty());
    }
}
