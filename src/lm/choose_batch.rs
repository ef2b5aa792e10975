//! Several prompts of the judge laid end to end for one forward pass.

use std::iter::once;

use tch::Tensor;

use super::attention::{self, Varlen};
use super::cpu_attention::Seen;
use super::scorer::Asked;
use super::{LmError, Placement};

/// The rows of a batch: per question the tokens of the prompt behind the shared prefix, then the answers' paths.
pub(super) struct ChooseBatch {
    /// i64 [T].
    pub(super) ids: Tensor,
    /// i64 [T].
    pub(super) positions: Tensor,
    /// i64 [n]: the rows whose states are looked at, per question the prompt's last one, then the paths.
    pub(super) kept: Tensor,
    /// Per step (row of `kept`, token).
    steps: Vec<(i64, i64)>,
    attention: Attention,
    placement: Placement,
}

/// What each row sees.
enum Attention {
    /// Question by question under masks.
    Masked(Vec<Span>),
    /// All at once: prompts and paths are sequences whose keys are gathered from the prefix and the new rows.
    Gathered {
        varlen: Varlen,
        /// i64: rows of the prefix's keys followed by the new ones; None where the new ones are all there is, in order.
        rows: Option<Tensor>,
    },
}

struct Span {
    first: i64,
    rows: i64,
    shared: i64,
    /// [rows, shared + rows], 0 or −∞; None where the rows are the last positions of one sequence.
    mask: Option<Tensor>,
}

impl ChooseBatch {
    /// `prefix`: tokens of the prefix, of which each question shares its own number.
    pub(super) fn new(
        batch: &[Asked],
        placement: Placement,
        prefix: usize,
    ) -> Result<Self, LmError> {
        let (mut ids, mut positions, mut kept, mut steps) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for one in batch {
            let own = &one.prompt[one.shared..];
            let first_kept = kept.len() as i64;
            ids.extend_from_slice(own);
            positions.extend((one.shared..one.prompt.len()).map(|at| at as i64));
            kept.push(ids.len() as i64 - 1);
            for path in &one.tree.paths {
                kept.extend((0..path.len()).map(|at| (ids.len() + at) as i64));
                ids.extend_from_slice(path);
                positions.extend((0..path.len()).map(|at| (one.prompt.len() + at) as i64));
            }
            let all = one.tree.steps.iter().flatten();
            steps.extend(all.map(|&(row, token)| (first_kept + row as i64, token)));
        }
        let attention = match placement.flash() {
            true => gathered(batch, placement, prefix)?,
            false => Attention::Masked(spans(batch, placement)),
        };
        let tensor = |values: &[i64]| Tensor::from_slice(values).to_device(placement.device);
        Ok(Self {
            ids: tensor(&ids),
            positions: tensor(&positions),
            kept: tensor(&kept),
            steps,
            attention,
            placement,
        })
    }

    /// i64 [steps]: where each step's log-probability lies in the flattened table [kept, vocab].
    pub(super) fn picked(&self, vocab: i64) -> Tensor {
        let places: Vec<i64> = self
            .steps
            .iter()
            .map(|(row, token)| row * vocab + token)
            .collect();
        Tensor::from_slice(&places).to_device(self.placement.device)
    }

    /// `q`: [T, heads, D]; `k`, `v`: [T, kv_heads, D]; `prefix`: keys and values [P, kv_heads, D] of this layer.
    /// Returns [T, heads · D].
    ///
    /// # Errors
    /// What libtorch refuses.
    pub(super) fn attend(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        prefix: Option<&(Tensor, Tensor)>,
    ) -> Result<Tensor, LmError> {
        match &self.attention {
            Attention::Masked(spans) => {
                let outputs = spans.iter().map(|span| span.attend(q, k, v, prefix));
                Ok(Tensor::f_cat(&outputs.collect::<Result<Vec<_>, _>>()?, 0)?)
            }
            Attention::Gathered { varlen, rows: None } => varlen.attend(q, k, v),
            Attention::Gathered {
                varlen,
                rows: Some(rows),
            } => {
                let gather = |seen: Option<&Tensor>, new: &Tensor| match seen {
                    Some(seen) => Tensor::cat(&[seen, new], 0).index_select(0, rows),
                    None => new.index_select(0, rows),
                };
                let keys = gather(prefix.map(|(keys, _)| keys), k);
                let values = gather(prefix.map(|(_, values)| values), v);
                varlen.attend(q, &keys, &values)
            }
        }
    }
}

impl Span {
    fn attend(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        prefix: Option<&(Tensor, Tensor)>,
    ) -> Result<Tensor, LmError> {
        let own = |x: &Tensor| x.narrow(0, self.first, self.rows);
        let (q, k, v) = (own(q), own(k), own(v));
        let seen = match &self.mask {
            Some(mask) => Seen::Masked(mask),
            None => Seen::Causal,
        };
        match prefix {
            Some((keys, values)) if self.shared > 0 => {
                let extend = |seen: &Tensor, new: &Tensor| {
                    Tensor::f_cat(&[&seen.narrow(0, 0, self.shared), new], 0)
                };
                attention::infer(&q, &extend(keys, &k)?, &extend(values, &v)?, seen)
            }
            _ => attention::infer(&q, &k, &v, seen),
        }
    }
}

fn spans(batch: &[Asked], placement: Placement) -> Vec<Span> {
    let mut first = 0;
    let spans = batch.iter().map(|one| {
        let (own, shared) = (one.prompt.len() - one.shared, one.shared);
        let lengths: Vec<usize> = one.tree.paths.iter().map(Vec::len).collect();
        let mask = (!lengths.is_empty()).then(|| {
            mask(shared, own, &lengths)
                .to_kind(placement.kind)
                .to_device(placement.device)
        });
        let span = Span {
            first,
            rows: (own + one.tree.tokens()) as i64,
            shared: shared as i64,
            mask,
        };
        first += span.rows;
        span
    });
    spans.collect()
}

/// f32 [own + paths, shared + own + paths], 0 or −∞: the prompt's own tokens are causal behind the `shared` ones, a
/// path sees the prompt and is causal in itself.
fn mask(shared: usize, own: usize, paths: &[usize]) -> Tensor {
    let rows = own + paths.iter().sum::<usize>();
    let columns = shared + rows;
    let mut mask = vec![f32::NEG_INFINITY; rows * columns];
    for row in 0..own {
        mask[row * columns..][..shared + row + 1].fill(0.0);
    }
    let mut first = own;
    for &length in paths {
        for at in 0..length {
            let row = &mut mask[(first + at) * columns..][..columns];
            row[..shared + own].fill(0.0);
            row[shared + first..=shared + first + at].fill(0.0);
        }
        first += length;
    }
    Tensor::from_slice(&mask).view([rows as i64, columns as i64])
}

/// Prompts and paths as sequences: the queries of each lie together, its keys are gathered.
fn gathered(batch: &[Asked], placement: Placement, prefix: usize) -> Result<Attention, LmError> {
    let (mut queries, mut keys, mut rows) = (Vec::new(), Vec::new(), Vec::new());
    let mut first = 0;
    for one in batch {
        let own = one.prompt.len() - one.shared;
        let prompt_rows: Vec<usize> = (0..one.shared)
            .chain((first..first + own).map(|row| prefix + row))
            .collect();
        let lengths = one.tree.paths.iter().map(Vec::len);
        for (path, length) in once((false, own)).chain(lengths.map(|length| (true, length))) {
            rows.extend_from_slice(&prompt_rows);
            if path {
                rows.extend((first..first + length).map(|row| prefix + row));
            }
            queries.push(length as i64);
            keys.push((prompt_rows.len() + if path { length } else { 0 }) as i64);
            first += length;
        }
    }
    let in_order = prefix == 0 && rows.iter().copied().eq(0..first);
    let rows: Vec<i64> = rows.into_iter().map(|row| row as i64).collect();
    Ok(Attention::Gathered {
        varlen: Varlen::new(&queries, &keys, placement)?,
        rows: (!in_order).then(|| Tensor::from_slice(&rows).to_device(placement.device)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lm::answer_tree::AnswerTree;

    #[test]
    fn paths_see_the_prompt_and_themselves() {
        // One shared token, two of the prompt, paths of two and one.
        let seen: Vec<Vec<f32>> = Vec::try_from(mask(1, 2, &[2, 1]).exp()).unwrap();
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

    /// Gathering keys for a GPU's kernel says the same as masks.
    #[test]
    fn gathered_keys_give_what_masks_give() {
        let placement = Placement {
            device: tch::Device::Cpu,
            kind: tch::Kind::Float,
        };
        let prefix = vec![1, 2, 3, 4];
        let asked = |prompt: &[i64], answers: &[Vec<i64>]| {
            Asked::new(
                0,
                prompt.to_vec(),
                AnswerTree::new(answers, Some(9)).unwrap(),
                &prefix,
            )
        };
        let batch = [
            asked(&[1, 2, 3, 4, 5, 6], &[vec![7], vec![8]]),
            asked(&[1, 2, 9], &[vec![7, 1, 2], vec![7, 3], vec![8, 8]]),
            asked(&[5], &[vec![1], vec![1, 2]]),
        ];
        assert_eq!(batch.each_ref().map(|one| one.shared), [4, 2, 0]);
        let mut packed = ChooseBatch::new(&batch, placement, prefix.len()).unwrap();
        let rows = packed.ids.size()[0];
        let random = |rows: i64, heads: i64| Tensor::randn([rows, heads, 8], tch::kind::FLOAT_CPU);
        let (q, k, v) = (random(rows, 4), random(rows, 2), random(rows, 2));
        let cache = (random(4, 2), random(4, 2));
        let masked = packed.attend(&q, &k, &v, Some(&cache)).unwrap();
        packed.attention = gathered(&batch, placement, prefix.len()).unwrap();
        let found = packed.attend(&q, &k, &v, Some(&cache)).unwrap();
        let difference = (masked - found).abs().max().double_value(&[]);
        assert!(difference < 1e-5, "{difference}");
    }
}
