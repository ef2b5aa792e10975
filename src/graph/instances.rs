//! The stages of a pipeline as its variants call them: one instance for all variants that agree on every axis that touches the
//! stage, by itself or through what it reads.

use std::collections::{BTreeMap, HashMap};

use crate::config::{Call, Matrix, Model, PipelineSpec};

pub(super) struct Instance<'a> {
    pub call: &'a Call,
    pub seed: u64,
    pub models: &'a BTreeMap<String, Model>,
    /// Positions of the variants that share it, ascending; a pipeline without a matrix is one variant.
    pub variants: Vec<usize>,
}

/// Instances in the order of the stages, and which of them a variant means by a stage's name.
pub(super) struct Instances<'a> {
    pub list: Vec<Instance<'a>>,
    stages: HashMap<&'a str, Stage>,
    /// Choices by variant.
    choices: Vec<&'a [usize]>,
    /// In the order of the pipeline.
    pub names: Vec<&'a str>,
}

struct Stage {
    axes: Vec<usize>,
    by_choice: HashMap<Vec<usize>, usize>,
}

impl<'a> Instances<'a> {
    pub(super) fn new(spec: &'a PipelineSpec) -> Self {
        let axes = axes(spec);
        let choices: Vec<&[usize]> = match &spec.matrix {
            Some(matrix) => matrix
                .variants
                .iter()
                .map(|variant| variant.choice.as_slice())
                .collect(),
            None => vec![&[]],
        };
        let mut list: Vec<Instance> = Vec::with_capacity(spec.stages.len());
        let mut stages = HashMap::with_capacity(spec.stages.len());
        for (call, axes) in spec.stages.iter().zip(axes) {
            let mut by_choice = HashMap::new();
            if axes.is_empty() {
                by_choice.insert(Vec::new(), list.len());
                list.push(Instance {
                    call,
                    seed: spec.seed,
                    models: &spec.models,
                    variants: (0..choices.len()).collect(),
                });
            } else if let Some(matrix) = &spec.matrix {
                for (index, variant) in matrix.variants.iter().enumerate() {
                    let choice = axes.iter().map(|&axis| variant.choice[axis]).collect();
                    let instance = *by_choice.entry(choice).or_insert_with(|| {
                        list.push(Instance {
                            call: matrix.call(call, index),
                            seed: variant.seed,
                            models: &variant.models,
                            variants: Vec::new(),
                        });
                        list.len() - 1
                    });
                    list[instance].variants.push(index);
                }
            }
            stages.insert(call.name.as_str(), Stage { axes, by_choice });
        }
        let names = spec.stages.iter().map(|call| call.name.as_str()).collect();
        Self {
            list,
            stages,
            choices,
            names,
        }
    }

    /// The instance that a variant means by `stage`.
    pub(super) fn find(&self, stage: &str, variant: usize) -> Option<usize> {
        let stage = self.stages.get(stage)?;
        let choice = self.choices[variant];
        let choice: Vec<usize> = stage.axes.iter().map(|&axis| choice[axis]).collect();
        stage.by_choice.get(&choice).copied()
    }

    pub(super) fn variants(&self) -> usize {
        self.choices.len()
    }
}

/// The axes that touch each stage, ascending.
fn axes(spec: &PipelineSpec) -> Vec<Vec<usize>> {
    let Some(matrix) = &spec.matrix else {
        return vec![Vec::new(); spec.stages.len()];
    };
    let mut axes: Vec<Vec<usize>> = spec
        .stages
        .iter()
        .map(|call| matrix.axes_of(&call.name))
        .collect();
    let readers = readers(spec, matrix);
    // A stage passes on what touches it, until nothing is new; cycles, which are reported later, end this too.
    let mut pending: Vec<usize> = (0..axes.len())
        .filter(|&stage| !axes[stage].is_empty())
        .collect();
    while let Some(stage) = pending.pop() {
        for &reader in &readers[stage] {
            let mut all = [axes[stage].as_slice(), &axes[reader]].concat();
            all.sort_unstable();
            all.dedup();
            if all.len() > axes[reader].len() {
                axes[reader] = all;
                pending.push(reader);
            }
        }
    }
    axes
}

/// Which stages read a stage, in any variant.
fn readers(spec: &PipelineSpec, matrix: &Matrix) -> Vec<Vec<usize>> {
    let places: HashMap<&str, usize> = spec
        .stages
        .iter()
        .enumerate()
        .map(|(place, call)| (call.name.as_str(), place))
        .collect();
    let mut readers = vec![Vec::new(); spec.stages.len()];
    for (reader, call) in spec.stages.iter().enumerate() {
        for input in matrix.calls(call).flat_map(|call| &call.inputs) {
            let stage = input.target.split('.').next().unwrap_or_default();
            if let Some(&stage) = places.get(stage) {
                readers[stage].push(reader);
            }
        }
    }
    readers
}
