//! `matrix:`: lists of values, and the variants of a pipeline that their product makes.
//!
//! A variant is what the pipeline would be with its values given by `--set`. Only stages that a value touches are read again,
//! once for each combination of the values that touch them.

mod apply;
mod label;
mod resolve;
mod written;

pub use label::names as short_names;
pub(super) use written::Written;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::Model;
use super::call::Call;
use super::yaml::Yaml;

/// More variants than this are refused, unless `limit:` of the matrix says otherwise.
pub const LIMIT: usize = 256;

/// The variants of a pipeline.
#[derive(Debug, Clone)]
pub struct Matrix {
    pub axes: Vec<Axis>,
    /// At least one.
    pub variants: Vec<Variant>,
    /// For each stage that a value touches, by name: its axes, and its calls by the choices on them.
    stages: HashMap<String, Touched>,
    /// Axes that may touch any stage: the seed's and those of models.
    global: Vec<usize>,
}

/// What varies.
#[derive(Debug, Clone)]
pub struct Axis {
    /// `train.with.lora.r`.
    pub key: String,
    /// The shortest ending of the key that no other axis has: `r`.
    pub name: String,
    pub values: Vec<AxisValue>,
}

#[derive(Debug, Clone)]
pub struct AxisValue {
    pub value: Yaml,
    /// As it stands in names of nodes; no other value of the axis has the same.
    pub label: String,
}

/// One value of each axis.
#[derive(Debug, Clone)]
pub struct Variant {
    /// `r=8,learning_rate=0.0005`.
    pub label: String,
    /// Positions in the values of each axis.
    pub choice: Vec<usize>,
    pub seed: u64,
    pub models: Arc<BTreeMap<String, Model>>,
}

#[derive(Debug, Clone, Default)]
struct Touched {
    axes: Vec<usize>,
    calls: HashMap<Vec<usize>, Call>,
}

impl Matrix {
    /// The axes that touch a stage by itself, not by what it reads.
    pub fn axes_of(&self, stage: &str) -> Vec<usize> {
        let own = self.stages.get(stage).map_or(&[][..], |own| &own.axes);
        let mut axes = [own, &self.global].concat();
        axes.sort_unstable();
        axes
    }

    /// A stage as a variant calls it; `call` is the pipeline's own.
    pub fn call<'a>(&'a self, call: &'a Call, variant: usize) -> &'a Call {
        let own = self.stages.get(&call.name).and_then(|touched| {
            let choice = &self.variants[variant].choice;
            touched.calls.get(&project(choice, &touched.axes))
        });
        own.unwrap_or(call)
    }

    /// Every way in which a stage is called.
    pub fn calls<'a>(&'a self, call: &'a Call) -> impl Iterator<Item = &'a Call> {
        let own = self.stages.get(&call.name);
        std::iter::once(call).chain(own.into_iter().flat_map(|own| own.calls.values()))
    }
}

/// The choices on some axes.
fn project(choice: &[usize], axes: &[usize]) -> Vec<usize> {
    axes.iter().map(|&axis| choice[axis]).collect()
}
