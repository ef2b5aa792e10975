//! Which examples each optimizer step trains on.

use super::{Example, TrainConfig, seeds};

/// The order of a whole run, known before it starts.
pub(super) struct TrainPlan {
    steps: Vec<StepPlan>,
}

/// One optimizer step.
pub(super) struct StepPlan {
    /// Epochs done when this step is: 0.5 is half-way through the first.
    pub epoch: f64,
    /// Indices of examples.
    pub micro_batches: Vec<Vec<usize>>,
}

impl TrainPlan {
    /// Goes through the examples `epochs` times, or until `max_steps` steps are planned, each time in an order of its
    /// own. The last step of an epoch takes what is left.
    pub(super) fn new(examples: &[Example], config: &TrainConfig) -> Self {
        let mut steps = Vec::new();
        let limit = config.max_steps.unwrap_or(usize::MAX);
        let mut epoch = 0;
        while match config.max_steps {
            Some(limit) => steps.len() < limit,
            None => epoch < config.epochs,
        } {
            let sequences = sequences(examples, config, epoch);
            let micro_batches: Vec<Vec<usize>> = sequences
                .chunks(config.batch_size)
                .map(|sequences| sequences.concat())
                .collect();
            let in_epoch = micro_batches.chunks(config.gradient_accumulation);
            let count = in_epoch.len() as f64;
            steps.extend(in_epoch.enumerate().map(|(index, batches)| StepPlan {
                epoch: epoch as f64 + (index + 1) as f64 / count,
                micro_batches: batches.to_vec(),
            }));
            epoch += 1;
        }
        steps.truncate(limit);
        Self { steps }
    }

    pub(super) fn total(&self) -> u64 {
        self.steps.len() as u64
    }

    /// All of the run.
    pub(super) fn micro_batches(&self) -> impl Iterator<Item = &Vec<usize>> {
        self.steps.iter().flat_map(|step| &step.micro_batches)
    }

    /// `step` counts from 1.
    pub(super) fn step(&self, step: u64) -> &StepPlan {
        &self.steps[step as usize - 1]
    }
}

/// The sequences of an epoch in order, each a list of examples: one, or with packing as many as fit.
fn sequences(examples: &[Example], config: &TrainConfig, epoch: u64) -> Vec<Vec<usize>> {
    let order = match config.shuffle {
        true => seeds::permutation(config.seed, epoch, examples.len()),
        false => (0..examples.len()).collect(),
    };
    if !config.packing {
        return order.into_iter().map(|index| vec![index]).collect();
    }
    // First fit: each example goes into the first block with room, so blocks fill without sorting by length.
    let mut blocks: Vec<(usize, Vec<usize>)> = Vec::new();
    let mut first_open = 0;
    for index in order {
        let length = examples[index].ids.len();
        let fits = |(used, _): &&mut (usize, Vec<usize>)| *used + length <= config.max_length;
        match blocks[first_open..].iter_mut().find(fits) {
            Some((used, block)) => {
                *used += length;
                block.push(index);
            }
            None => blocks.push((length, vec![index])),
        }
        while blocks
            .get(first_open)
            .is_some_and(|(used, _)| *used >= config.max_length)
        {
            first_open += 1;
        }
    }
    blocks.into_iter().map(|(_, block)| block).collect()
}

/// Cuts a micro-batch into runs of at most `max_tokens` tokens; a longer example goes alone. The gradient is the same.
pub(super) fn split(batch: &[usize], examples: &[Example], max_tokens: u64) -> Vec<Vec<usize>> {
    let mut parts: Vec<Vec<usize>> = Vec::new();
    let mut used = 0_u64;
    for &index in batch {
        let length = examples[index].ids.len() as u64;
        match parts.last_mut() {
            Some(part) if used.saturating_add(length) <= max_tokens => part.push(index),
            _ => {
                parts.push(vec![index]);
                used = 0;
            }
        }
        used += length;
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn examples(lengths: &[usize]) -> Vec<Example> {
        lengths
            .iter()
            .enumerate()
            .map(|(index, &length)| Example {
                id: index.to_string(),
                ids: vec![0; length],
                labels: vec![0; length],
            })
            .collect()
    }

    fn config() -> TrainConfig {
        TrainConfig {
            batch_size: 2,
            gradient_accumulation: 2,
            epochs: 2,
            max_length: 10,
            ..TrainConfig::default()
        }
    }

    #[test]
    fn every_epoch_takes_every_example_once() {
        let plan = TrainPlan::new(&examples(&[1; 10]), &config());
        assert_eq!(plan.total(), 6);
        let epoch: Vec<usize> = (1..=3)
            .flat_map(|step| plan.step(step).micro_batches.concat())
            .collect();
        let mut sorted = epoch.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..10).collect::<Vec<_>>());
        assert_eq!(plan.step(3).micro_batches.len(), 1);
        assert_eq!((plan.step(3).epoch, plan.step(6).epoch), (1.0, 2.0));
        let next: Vec<usize> = (4..=6)
            .flat_map(|step| plan.step(step).micro_batches.concat())
            .collect();
        assert_ne!(epoch, next);
    }

    #[test]
    fn max_steps_cuts_and_extends() {
        for steps in [4, 20] {
            let config = TrainConfig {
                max_steps: Some(steps),
                ..config()
            };
            assert_eq!(
                TrainPlan::new(&examples(&[1; 10]), &config).total(),
                steps as u64
            );
        }
    }

    #[test]
    fn packed_blocks_are_full_but_not_more() {
        let examples = examples(&[6, 4, 5, 5, 9, 1, 3]);
        let config = TrainConfig {
            packing: true,
            ..config()
        };
        let blocks = sequences(&examples, &config, 0);
        let tokens = |block: &Vec<usize>| {
            block
                .iter()
                .map(|&index| examples[index].ids.len())
                .sum::<usize>()
        };
        assert!(blocks.iter().all(|block| tokens(block) <= 10));
        let mut all = blocks.concat();
        all.sort_unstable();
        assert_eq!(all, (0..7).collect::<Vec<_>>());
        assert!(blocks.len() < 6);
    }

    #[test]
    fn splits_at_examples() {
        let examples = examples(&[3, 3, 3, 12, 2]);
        assert_eq!(
            split(&[0, 1, 2, 3, 4], &examples, 6),
            [vec![0, 1], vec![2], vec![3], vec![4]]
        );
        assert_eq!(split(&[0, 1], &examples, u64::MAX), [vec![0, 1]]);
    }
}
