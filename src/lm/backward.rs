//! The gradient of one micro-batch, layer by layer.
//!
//! Every layer's graph starts at a detached input, so a layer either keeps its graph until the backward pass reaches it
//! or is computed again from that input (Chen et al. 2016, arXiv:1604.06174). Both give the bits of one graph over the
//! whole model, dropout included, because its mask follows from a seed that each layer gets.

use tch::{Kind, Tensor};

use super::attention::causal_varlen;
use super::cuda::EngineBatch;
use super::loss::{IGNORED, token_loss};
use super::rope::RotaryTable;
use super::{Adapter, Batch, Decoder, Example, Layer, LmError, cpu_attention, seeds};

/// Sequences laid end to end with what is trained in them.
pub(super) struct TrainBatch {
    batch: Batch,
    /// i64 [N]: the tokens whose successor is trained.
    rows: Tensor,
    /// i64 [N]: their successors.
    targets: Tensor,
}

impl TrainBatch {
    pub(super) fn pack(examples: &[&Example], decoder: &Decoder) -> Self {
        let device = decoder.placement().device;
        let ids: Vec<&[i64]> = examples
            .iter()
            .map(|example| example.ids.as_slice())
            .collect();
        let (mut rows, mut targets) = (Vec::new(), Vec::new());
        let mut start = 0;
        for example in examples {
            for (index, &label) in example.labels.iter().enumerate().skip(1) {
                if label != IGNORED {
                    rows.push(start + index as i64 - 1);
                    targets.push(label);
                }
            }
            start += example.labels.len() as i64;
        }
        Self {
            batch: Batch::pack(&ids, device),
            rows: Tensor::from_slice(&rows).to_device(device),
            targets: Tensor::from_slice(&targets).to_device(device),
        }
    }

    pub(super) fn tokens(&self) -> i64 {
        self.batch.ids.size()[0]
    }

    /// Tokens that are predicted and count for the loss.
    pub(super) fn trained(&self) -> i64 {
        self.targets.size()[0]
    }

    /// What attention keeps in one layer's graph beside its inputs and output.
    pub(super) fn attention_bytes(&self, decoder: &Decoder) -> u64 {
        let placement = decoder.placement();
        let (true, Kind::BFloat16, Some(layer)) =
            (placement.is_cpu(), placement.kind, decoder.layers().first())
        else {
            return 0;
        };
        let lengths = self
            .batch
            .cu_seqlens
            .windows(2)
            .map(|ends| ends[1] - ends[0]);
        lengths
            .map(|length| cpu_attention::kept_bytes(layer.heads, length))
            .sum()
    }

    /// The same for the engine of a GPU.
    pub(super) fn for_engine(&self, decoder: &Decoder) -> EngineBatch<'_> {
        EngineBatch {
            ids: &self.batch.ids,
            rotary: decoder.rotary(&self.batch.positions),
            boundaries: &self.batch.cu_seqlens,
            rows: &self.rows,
            targets: &self.targets,
        }
    }

    fn layer(&self, decoder: &Decoder, index: usize, x: &Tensor, rotary: &RotaryTable) -> Tensor {
        decoder.layers()[index].forward(x, rotary, |q, k, v| {
            causal_varlen(q, k, v, &self.batch.cu_seqlens)
        })
    }
}

/// One layer between its forward and its backward pass.
struct Segment {
    /// [T, hidden], the start of the layer's graph.
    input: Tensor,
    /// [T, hidden] with its graph, where that is kept.
    output: Option<Tensor>,
}

/// Adds the gradient of the summed token losses to the adapter's and returns the sum. The last `kept` layers keep their
/// graphs, the others are computed twice. `seed` draws the dropout.
pub(super) fn accumulate_gradient(
    decoder: &Decoder,
    adapter: &Adapter,
    batch: &TrainBatch,
    seed: u64,
    kept: usize,
) -> Result<f64, LmError> {
    let layers = decoder.layers().len();
    let rotary = decoder.rotary(&batch.batch.positions);
    let run = |index: usize, x: &Tensor| {
        seed_dropout(&decoder.layers()[index], seed, index);
        batch.layer(decoder, index, x, &rotary)
    };
    // No parameter lies before the first layer, so its input needs no gradient.
    let leaf = |index: usize, x: &Tensor| x.detach().set_requires_grad(index > 0);

    let mut x = tch::no_grad(|| decoder.embed(&batch.batch.ids));
    let mut segments = Vec::with_capacity(layers);
    for index in 0..layers {
        if index + kept >= layers {
            let input = leaf(index, &x);
            let output = run(index, &input);
            x = output.detach();
            segments.push(Segment {
                input,
                output: Some(output),
            });
        } else {
            let output = tch::no_grad(|| run(index, &x));
            segments.push(Segment {
                input: std::mem::replace(&mut x, output),
                output: None,
            });
        }
    }

    let (sum, mut gradient) = loss_gradient(decoder, batch, &x)?;
    drop(x);
    for (index, segment) in segments.into_iter().enumerate().rev() {
        let (input, output) = match segment.output {
            Some(output) => (segment.input, output),
            None => {
                let input = leaf(index, &segment.input);
                let output = run(index, &input);
                (input, output)
            }
        };
        let mut leaves = Vec::new();
        leaves.extend((index > 0).then_some(&input));
        for linear in decoder.layers()[index].linears() {
            leaves.extend(
                linear
                    .update()
                    .into_iter()
                    .flat_map(|update| update.leaves()),
            );
        }
        let mut gradients = backward(&output, &gradient, &leaves)?;
        if index > 0 {
            gradient = gradients.remove(0);
        }
        adapter.accumulate(index, &gradients)?;
    }
    Ok(sum)
}

/// Decides what a layer drops, so that computing it again drops the same.
pub(super) fn seed_dropout(layer: &Layer, seed: u64, index: usize) {
    for (place, linear) in layer.linears().into_iter().enumerate() {
        if let Some(dropout) = linear.update().and_then(|update| update.dropout.as_ref()) {
            dropout.reseed(seeds::derive(
                "dropout",
                &[seed, index as u64, place as u64],
            ));
        }
    }
}

/// The loss above the last layer and its gradient with respect to that layer's output `x` [T, hidden].
fn loss_gradient(
    decoder: &Decoder,
    batch: &TrainBatch,
    x: &Tensor,
) -> Result<(f64, Tensor), LmError> {
    let selected = x.f_index_select(0, &batch.rows)?.set_requires_grad(true);
    let normed = decoder.norm(&selected);
    let loss = token_loss(decoder, &normed, &batch.targets, true)?;
    let above = loss.gradient.unwrap_or_else(|| normed.zeros_like());
    let below = backward(&normed, &above, &[&selected])?;
    let gradient = x.f_zeros_like()?.f_index_copy(0, &batch.rows, &below[0])?;
    Ok((loss.sum, gradient))
}

/// Gradients of `inputs` given the gradient of `output`. libtorch's binding starts at scalars only, and the gradient of
/// the sum of products is exactly the one given.
fn backward(
    output: &Tensor,
    gradient: &Tensor,
    inputs: &[&Tensor],
) -> Result<Vec<Tensor>, LmError> {
    let surrogate = (output * gradient).f_sum(Kind::Float)?;
    Ok(Tensor::f_run_backward(&[surrogate], inputs, false, false)?)
}

/// The sum of the token losses, without gradients.
pub(super) fn evaluate(decoder: &Decoder, batch: &TrainBatch) -> Result<f64, LmError> {
    tch::no_grad(|| {
        let rotary = decoder.rotary(&batch.batch.positions);
        let mut x = decoder.embed(&batch.batch.ids);
        for index in 0..decoder.layers().len() {
            x = batch.layer(decoder, index, &x, &rotary);
        }
        let normed = decoder.norm(&x.f_index_select(0, &batch.rows)?);
        Ok(token_loss(decoder, &normed, &batch.targets, false)?.sum)
    })
}
