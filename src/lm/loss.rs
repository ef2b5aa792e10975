//! Cross-entropy over the trained tokens, a chunk of logits at a time.
//!
//! The logits of all tokens would be by far the largest tensor of a step (5 GB for 16k tokens of a vocabulary of 152k).
//! The head is frozen, so the gradient of its input follows from each chunk at once and no logits are kept.

use tch::{Kind, Tensor};

use super::{Decoder, LmError};

/// The label of a token that is not trained.
pub const IGNORED: i64 = -100;

/// Bytes that one chunk of f32 logits may take.
const CHUNK_BYTES_CPU: i64 = 64 << 20;
const CHUNK_BYTES_GPU: i64 = 1 << 30;

/// The sum of the token losses, and where asked for its gradient.
pub(super) struct TokenLoss {
    pub sum: f64,
    /// [N, hidden]: the gradient of `sum` with respect to the input of the head.
    pub gradient: Option<Tensor>,
}

/// `normed`: [N, hidden] after the final norm; `targets`: i64 [N].
pub(super) fn token_loss(
    decoder: &Decoder,
    normed: &Tensor,
    targets: &Tensor,
    with_gradient: bool,
) -> Result<TokenLoss, LmError> {
    tch::no_grad(|| {
        let (head, count) = (decoder.head_weight(), targets.size()[0]);
        let bytes = match decoder.placement().is_cpu() {
            true => CHUNK_BYTES_CPU,
            false => CHUNK_BYTES_GPU,
        };
        let chunk = (bytes / (4 * head.size()[0])).clamp(64, 8192);
        let mut sums = Vec::new();
        let mut gradients = Vec::new();
        for start in (0..count).step_by(chunk as usize) {
            let length = chunk.min(count - start);
            let hidden = normed.f_narrow(0, start, length)?;
            let targets = targets.f_narrow(0, start, length)?.f_unsqueeze(1)?;
            let logits = hidden.f_linear::<Tensor>(&head, None)?;
            let mut log_probabilities = logits.f_log_softmax(1, Kind::Float)?;
            sums.push(
                log_probabilities
                    .f_gather(1, &targets, false)?
                    .f_sum(Kind::Double)?,
            );
            if with_gradient {
                let probabilities = log_probabilities.f_exp_()?;
                // d loss / d logits = softmax - one-hot.
                let minus_one = Tensor::f_full([length, 1], -1.0, (Kind::Float, hidden.device()))?;
                let probabilities = probabilities.f_scatter_add(1, &targets, &minus_one)?;
                gradients.push(probabilities.f_to_kind(head.kind())?.f_matmul(&head)?);
            }
        }
        let sum = match sums.is_empty() {
            true => 0.0,
            false => -Tensor::f_stack(&sums, 0)?
                .f_sum(Kind::Double)?
                .double_value(&[]),
        };
        let gradient = match with_gradient {
            true => Some(Tensor::f_cat(&gradients, 0)?),
            false => None,
        };
        Ok(TokenLoss { sum, gradient })
    })
}
