//! How far the logits of two forms of one model are apart.

use tch::{Device, Kind, Tensor};

use super::{Batch, LanguageModel, LmError, Message, guard};

/// Over all positions of some prompts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LogitDifference {
    pub positions: i64,
    /// Of all logits, absolute.
    pub largest: f64,
    pub mean: f64,
    /// The mean Kullback-Leibler divergence from the reference's next-token distribution, in nats.
    pub divergence: f64,
    /// The share of positions with the same likeliest token.
    pub agreement: f64,
}

/// The logits at every position of some prompts: f32 [T, vocab] on the CPU, prompt by prompt.
pub struct PromptLogits(Vec<Tensor>);

/// What `model` gives at every position of the prompts of `conversations`.
///
/// # Errors
/// A model without a chat template, or one that does not fit.
pub fn prompt_logits(
    model: &LanguageModel,
    conversations: &[Vec<Message>],
) -> Result<PromptLogits, LmError> {
    let one = |messages: &Vec<Message>| {
        let ids = model.tokenizer.encode(&model.render(messages, true)?)?;
        let batch = Batch::pack(&[ids], model.decoder.placement().device);
        guard(|| {
            tch::no_grad(|| {
                let logits = model.decoder.logits(&model.decoder.forward(&batch));
                Ok(logits.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?)
            })
        })
    };
    let logits = conversations.iter().map(one);
    Ok(PromptLogits(logits.collect::<Result<_, _>>()?))
}

impl LogitDifference {
    /// Of the logits `found` from `reference`, which are of the same prompts.
    pub fn of(reference: &PromptLogits, found: &PromptLogits) -> Self {
        let cat = |logits: &PromptLogits| Tensor::cat(&logits.0, 0);
        let (reference, found) = (cat(reference), cat(found));
        let apart = (&reference - &found).abs();
        let log = |logits: &Tensor| logits.log_softmax(1, Kind::Double);
        let (p, q) = (log(&reference), log(&found));
        let divergence = (p.exp() * (&p - &q)).sum_dim_intlist(1, false, Kind::Double);
        let same = reference
            .argmax(1, false)
            .eq_tensor(&found.argmax(1, false));
        Self {
            positions: reference.size()[0],
            largest: apart.max().double_value(&[]),
            mean: apart.mean(Kind::Double).double_value(&[]),
            divergence: divergence.mean(Kind::Double).double_value(&[]),
            agreement: same
                .to_kind(Kind::Double)
                .mean(Kind::Double)
                .double_value(&[]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_those_of_the_definition() {
        let reference = Tensor::from_slice(&[0.0_f32, 1.0, 2.0, 0.0]).view([2, 2]);
        let found = Tensor::from_slice(&[0.0_f32, 1.5, 0.0, 0.5]).view([2, 2]);
        let logits = |logits: &Tensor| PromptLogits(vec![logits.shallow_clone()]);
        let difference = LogitDifference::of(&logits(&reference), &logits(&found));
        assert_eq!(difference.positions, 2);
        assert_eq!(difference.largest, 2.0);
        assert_eq!(difference.mean, 0.75);
        assert_eq!(difference.agreement, 0.5);
        assert!(difference.divergence > 0.1);
        let none = LogitDifference::of(&logits(&reference), &logits(&reference));
        assert_eq!(
            (none.largest, none.divergence, none.agreement),
            (0.0, 0.0, 1.0)
        );
    }
}
