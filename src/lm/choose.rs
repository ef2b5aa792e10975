//! The judge: which of a few allowed answers does the model hold most likely after a prompt? One forward pass per
//! prompt scores all answers exactly; nothing is generated or parsed.

use tch::{Device, Kind, Tensor};

use super::{LanguageModel, LmError, attention, guard};

/// Scores answers to prompts that begin with the same text, whose keys and values are computed once.
pub struct Chooser<'a> {
    model: &'a LanguageModel,
    prefix_text: String,
    prefix: Vec<i64>,
    /// Per layer keys and values of the prefix, each [P, kv_heads, D].
    cache: Vec<(Tensor, Tensor)>,
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
        let limit = usize::try_from(model.config.context).unwrap_or(usize::MAX);
        if prefix.len() > limit {
            return Err(LmError::Context {
                tokens: prefix.len(),
                limit,
            });
        }
        let cache = match prefix.is_empty() {
            true => Vec::new(),
            false => guard(|| tch::no_grad(|| Ok(prefix_cache(model, &prefix))))?,
        };
        Ok(Self {
            model,
            prefix_text: prefix_text.to_owned(),
            prefix,
            cache,
        })
    }

    /// Scores `answers` as continuations of the prefix text followed by `rest_text`.
    ///
    /// An answer's score is the sum of the log-probabilities of its tokens. Where one answer begins with the whole of
    /// another (`1` and `12`), the end of the turn counts as one more token of every answer.
    ///
    /// # Errors
    /// [`LmError::Choices`] for no, empty or equal answers; [`LmError::Context`] for a prompt that is too long;
    /// [`LmError::Prompt`] for an empty one; [`LmError::NotANumber`] from damaged weights.
    pub fn choose<S: AsRef<str>>(&self, rest_text: &str, answers: &[S]) -> Result<Choice, LmError> {
        let answers = answers
            .iter()
            .map(|answer| self.model.tokenizer.encode(answer.as_ref()))
            .collect::<Result<Vec<_>, _>>()?;
        let tree = AnswerTree::new(&answers, self.model.end_of_turn())?;
        // Tokens may straddle the seam, so the whole prompt is tokenised and what it shares with the prefix reused.
        let prompt = self
            .model
            .tokenizer
            .encode(&format!("{}{rest_text}", self.prefix_text))?;
        self.score(&prompt, &tree)
    }

    fn score(&self, prompt: &[i64], tree: &AnswerTree) -> Result<Choice, LmError> {
        let limit = usize::try_from(self.model.config.context).unwrap_or(usize::MAX);
        let tokens = prompt.len() + tree.depth();
        if tokens > limit {
            return Err(LmError::Context { tokens, limit });
        }
        let Some(last) = prompt.len().checked_sub(1) else {
            return Err(LmError::Prompt("it is empty".into()));
        };
        // The last token of the prompt is always computed: its state gives the answers' first tokens.
        let shared = prompt
            .iter()
            .zip(&self.prefix)
            .take_while(|(a, b)| a == b)
            .count()
            .min(last);
        let table = guard(|| tch::no_grad(|| Ok(self.log_softmax_rows(prompt, shared, tree))))?;
        Ok(Choice::from_scores(
            tree.scores(|row, token| table.double_value(&[row, token])),
        ))
    }

    /// Log-probabilities of the next token after the prompt (row 0) and after each node of the tree (row i + 1),
    /// f32 [1 + nodes, vocab] on the CPU.
    fn log_softmax_rows(&self, prompt: &[i64], shared: usize, tree: &AnswerTree) -> Tensor {
        let decoder = &self.model.decoder;
        let placement = decoder.placement();
        let own = &prompt[shared..];
        let ids: Vec<i64> = own
            .iter()
            .copied()
            .chain(tree.nodes.iter().map(|node| node.token))
            .collect();
        let depths = tree.nodes.iter().map(|node| prompt.len() + node.depth - 1);
        let positions: Vec<i64> = (shared..prompt.len())
            .chain(depths)
            .map(|position| position as i64)
            .collect();
        let mask = tree
            .mask(shared, own.len())
            .to_kind(placement.kind)
            .to_device(placement.device);

        let ids = Tensor::from_slice(&ids).to_device(placement.device);
        let positions = Tensor::from_slice(&positions).to_device(placement.device);
        let hidden = decoder.forward_with(&ids, &positions, |layer, q, k, v| {
            if shared == 0 {
                return attention::masked(q, k, v, &mask);
            }
            let (keys, values) = &self.cache[layer];
            let extend =
                |seen: &Tensor, new| Tensor::cat(&[&seen.narrow(0, 0, shared as i64), new], 0);
            attention::masked(q, &extend(keys, k), &extend(values, v), &mask)
        });
        let first = own.len() as i64 - 1;
        let rows = hidden.narrow(0, first, hidden.size()[0] - first);
        decoder
            .logits(&rows)
            .log_softmax(1, Kind::Float)
            .to_device(Device::Cpu)
    }
}

fn prefix_cache(model: &LanguageModel, prefix: &[i64]) -> Vec<(Tensor, Tensor)> {
    let device = model.decoder.placement().device;
    let ids = Tensor::from_slice(prefix).to_device(device);
    let positions = Tensor::arange(prefix.len() as i64, (Kind::Int64, device));
    let mut cache = Vec::new();
    let _ = model.decoder.forward_with(&ids, &positions, |_, q, k, v| {
        // Copies: both are views of one larger tensor that should not outlive the layer.
        cache.push((k.contiguous(), v.contiguous()));
        attention::causal_varlen(q, k, v, &[0, prefix.len() as i64])
    });
    cache
}

impl Choice {
    fn from_scores(log_probabilities: Vec<f64>) -> Self {
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
        Self {
            index,
            probability: 1.0 / total,
            log_probabilities,
        }
    }
}

/// The token trie of the answers. Its nodes are appended to the prompt as branches that see only their ancestors, so
/// that one forward pass gives the probabilities after every one of them.
struct AnswerTree {
    /// Parents before children. The root, which is the prompt, is not among them.
    nodes: Vec<Node>,
    /// Per answer its steps: (row of [`Chooser::log_softmax_rows`], token) whose log-probabilities are summed.
    steps: Vec<Vec<(i64, i64)>>,
}

struct Node {
    token: i64,
    parent: Option<usize>,
    /// 1 for the first token of an answer.
    depth: usize,
}

impl AnswerTree {
    fn new(answers: &[Vec<i64>], end_of_turn: Option<i64>) -> Result<Self, LmError> {
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
        let mut tree = Self {
            nodes: Vec::new(),
            steps: Vec::new(),
        };
        for answer in answers {
            let mut parent = None;
            let mut steps = Vec::new();
            for (at, &token) in answer.iter().enumerate() {
                steps.push((row_after(parent), token));
                if at + 1 < answer.len() || end.is_some() {
                    parent = Some(tree.child(parent, token));
                }
            }
            steps.extend(end.map(|end| (row_after(parent), end)));
            tree.steps.push(steps);
        }
        Ok(tree)
    }

    fn child(&mut self, parent: Option<usize>, token: i64) -> usize {
        let known = self
            .nodes
            .iter()
            .position(|node| node.parent == parent && node.token == token);
        known.unwrap_or_else(|| {
            let depth = parent.map_or(1, |parent| self.nodes[parent].depth + 1);
            self.nodes.push(Node {
                token,
                parent,
                depth,
            });
            self.nodes.len() - 1
        })
    }

    fn depth(&self) -> usize {
        self.nodes.iter().map(|node| node.depth).max().unwrap_or(0)
    }

    /// f32 [own + nodes, shared + own + nodes], 0 or −∞: the prompt's own tokens are causal behind the `shared` ones,
    /// a node sees the prompt, its ancestors and itself.
    fn mask(&self, shared: usize, own: usize) -> Tensor {
        let rows = own + self.nodes.len();
        let columns = shared + rows;
        let mut mask = vec![f32::NEG_INFINITY; rows * columns];
        for row in 0..own {
            mask[row * columns..][..shared + row + 1].fill(0.0);
        }
        for index in 0..self.nodes.len() {
            let row = &mut mask[(own + index) * columns..][..columns];
            row[..shared + own].fill(0.0);
            let mut ancestor = Some(index);
            while let Some(node) = ancestor {
                row[shared + own + node] = 0.0;
                ancestor = self.nodes[node].parent;
            }
        }
        Tensor::from_slice(&mask).view([rows as i64, columns as i64])
    }

    fn scores(&self, log_probability: impl Fn(i64, i64) -> f64) -> Vec<f64> {
        let score = |steps: &Vec<(i64, i64)>| {
            steps
                .iter()
                .map(|&(row, token)| log_probability(row, token))
                .sum()
        };
        self.steps.iter().map(score).collect()
    }
}

/// Row 0 follows the prompt, row i + 1 follows node i.
fn row_after(node: Option<usize>) -> i64 {
    node.map_or(0, |node| node as i64 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn single_tokens_need_no_branches() {
        let tree = AnswerTree::new(&[vec![5], vec![6]], None).unwrap();
        assert!(tree.nodes.is_empty());
        assert_eq!(tree.steps, [[(0, 5)], [(0, 6)]]);
    }

    #[test]
    fn answers_share_their_beginnings() {
        let tree = AnswerTree::new(&[vec![5, 1, 2], vec![5, 1, 3], vec![7]], None).unwrap();
        assert_eq!(tree.nodes.len(), 2);
        assert_eq!(tree.steps[1], [(0, 5), (1, 1), (2, 3)]);
        assert_eq!(tree.depth(), 2);
    }

    #[test]
    fn nested_answers_end_their_turn() {
        let answers = [vec![1], vec![1, 2]];
        assert!(AnswerTree::new(&answers, None).is_err());
        let tree = AnswerTree::new(&answers, Some(9)).unwrap();
        assert_eq!(
            tree.steps,
            [vec![(0, 1), (1, 9)], vec![(0, 1), (1, 2), (2, 9)]]
        );
    }

    #[test]
    fn branches_see_prompt_and_ancestors_only() {
        let tree = AnswerTree::new(&[vec![1, 2, 3], vec![4, 5]], None).unwrap();
        // Nodes: 1, 1 → 2, 4.
        let seen: Vec<Vec<f32>> = Vec::try_from(tree.mask(1, 2).exp()).unwrap();
        assert_eq!(
            seen,
            [
                [1., 1., 0., 0., 0., 0.],
                [1., 1., 1., 0., 0., 0.],
                [1., 1., 1., 1., 0., 0.],
                [1., 1., 1., 1., 1., 0.],
                [1., 1., 1., 0., 0., 1.],
            ]
        );
    }

    #[test]
    fn ties_go_to_the_first() {
        let choice = Choice::from_scores(vec![-3.0, -1.0, -1.0]);
        assert_eq!(choice.index, 1);
        assert!((choice.probability - 1.0 / (2.0 + (-2_f64).exp())).abs() < 1e-12);
    }

    #[test]
    fn refuses_answers_that_cannot_be_told_apart() {
        let error =
            |answers: &[Vec<i64>]| AnswerTree::new(answers, None).err().unwrap().to_string();
        insta::assert_snapshot!(error(&[]), @"the allowed answers cannot be used: there are none");
        insta::assert_snapshot!(error(&[vec![1], vec![]]), @"the allowed answers cannot be used: answer 1 is empty");
        insta::assert_snapshot!(error(&[vec![1], vec![2], vec![1]]), @"the allowed answers cannot be used: answers 0 and 2 are equal");
    }
}
