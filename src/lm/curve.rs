//! The course of a training run.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// One optimizer step.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct CurveRow {
    /// Counted from 1.
    pub step: u64,
    pub epoch: f64,
    /// Mean loss of a trained token over the whole step.
    pub loss: f64,
    pub learning_rate: f64,
    /// Euclidean norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Trained tokens.
    pub tokens: u64,
    /// Mean loss of a validation token after this step, where it was measured.
    pub eval_loss: Option<f64>,
}

/// What an evaluation meant, given all evaluations so far.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Best {
    pub step: u64,
    pub loss: f64,
    /// Evaluations since, none of them better.
    pub since: u64,
}

/// The best evaluation of a curve. Losses that are no numbers are never best.
pub fn best(curve: &[CurveRow]) -> Option<Best> {
    let mut best: Option<Best> = None;
    for row in curve {
        let Some(loss) = row.eval_loss else { continue };
        match &mut best {
            Some(best) if loss.is_nan() || loss >= best.loss => best.since += 1,
            _ if loss.is_nan() => {}
            _ => {
                best = Some(Best {
                    step: row.step,
                    loss,
                    since: 0,
                });
            }
        }
    }
    best
}

/// The rows as f64 [rows, 7], which keeps every bit; an evaluation that was not made is NaN.
pub(super) fn curve_tensor(rows: &[CurveRow]) -> Tensor {
    let numbers: Vec<f64> = rows
        .iter()
        .flat_map(|row| {
            [
                row.step as f64,
                row.epoch,
                row.loss,
                row.learning_rate,
                row.grad_norm,
                row.tokens as f64,
                row.eval_loss.unwrap_or(f64::NAN),
            ]
        })
        .collect();
    Tensor::from_slice(&numbers).view([-1, 7])
}

/// The inverse of [`curve_tensor`].
pub(super) fn curve_rows(tensor: &Tensor) -> Vec<CurveRow> {
    let numbers: Vec<f64> =
        Vec::try_from(tensor.to_kind(Kind::Double).flatten(0, -1)).unwrap_or_default();
    numbers
        .chunks_exact(7)
        .map(|row| CurveRow {
            step: row[0] as u64,
            epoch: row[1],
            loss: row[2],
            learning_rate: row[3],
            grad_norm: row[4],
            tokens: row[5] as u64,
            eval_loss: (!row[6].is_nan()).then_some(row[6]),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_evaluations_without_improvement() {
        let rows = |losses: &[Option<f64>]| -> Vec<CurveRow> {
            (1..)
                .zip(losses)
                .map(|(step, &eval_loss)| CurveRow {
                    step,
                    epoch: 0.0,
                    loss: 1.0,
                    learning_rate: 0.0,
                    grad_norm: 0.0,
                    tokens: 1,
                    eval_loss,
                })
                .collect()
        };
        let losses = [Some(2.0), None, Some(1.0), Some(1.0), Some(f64::NAN)];
        let found = best(&rows(&losses)).unwrap();
        assert_eq!((found.step, found.loss, found.since), (3, 1.0, 2));
        assert_eq!(best(&rows(&[None, Some(f64::NAN)])), None);
    }
}
