//! From the values of each variant to its seed, its models and the calls of the stages that they touch.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::written::Written;
use super::{Axis, AxisValue, Matrix, Touched, Variant, label, project};
use crate::config::call::Call;
use crate::config::diagnostic::Problems;
use crate::config::overrides;
use crate::config::pipeline::{self, Model, Parts};
use crate::config::source::Span;
use crate::config::yaml::{Entry, Kind, Yaml};

impl Written {
    /// Reads what differs between the variants; `choices` are positions in the `values` of each axis.
    pub(super) fn matrix(
        &self,
        values: Vec<Vec<Yaml>>,
        choices: Vec<Vec<usize>>,
        pipeline: &Yaml,
        parts: &Parts,
        problems: &mut Problems,
    ) -> Matrix {
        let keys: Vec<&str> = self.axes.iter().map(|axis| axis.key.as_str()).collect();
        let axes: Vec<Axis> = label::names(&keys)
            .into_iter()
            .zip(&keys)
            .zip(values)
            .map(|((name, key), values)| Axis {
                key: (*key).to_owned(),
                name,
                values: label::values(&values)
                    .into_iter()
                    .zip(values)
                    .map(|(label, value)| AxisValue { value, label })
                    .collect(),
            })
            .collect();
        let of_model = |axis: &usize| self.axes[*axis].path[0].0 == "models";
        let of_seed = |axis: &usize| self.axes[*axis].path[0].0 == "seed";
        let of_models: Vec<usize> = (0..axes.len()).filter(of_model).collect();
        let seed = (0..axes.len()).find(|axis| of_seed(axis));
        let base = Arc::new(parts.models.clone());
        let mut models: HashMap<Vec<usize>, Arc<BTreeMap<String, Model>>> = HashMap::new();
        let mut variants = Vec::with_capacity(choices.len());
        for choice in choices {
            let label = axes
                .iter()
                .zip(&choice)
                .map(|(axis, &value)| format!("{}={}", axis.name, axis.values[value].label));
            let seed = seed.map_or(parts.seed, |axis| {
                pipeline::read_seed(&axes[axis].values[choice[axis]].value, problems)
            });
            let own = models
                .entry(project(&choice, &of_models))
                .or_insert_with(|| {
                    if of_models.is_empty() {
                        return Arc::clone(&base);
                    }
                    Arc::new(self.models(&axes, &choice, &of_models, pipeline, &base, problems))
                });
            variants.push(Variant {
                label: label.collect::<Vec<_>>().join(","),
                seed,
                models: Arc::clone(own),
                choice,
            });
        }
        let mut stages: HashMap<String, Touched> = HashMap::new();
        for (index, axis) in self.axes.iter().enumerate() {
            if !of_model(&index) && !of_seed(&index) {
                let touched = stages.entry(axis.path[0].0.clone()).or_default();
                touched.axes.push(index);
            }
        }
        for (stage, touched) in &mut stages {
            let wanted: HashSet<Vec<usize>> = variants
                .iter()
                .map(|variant| project(&variant.choice, &touched.axes))
                .collect();
            let Some(entry) = pipeline
                .entry("stages")
                .and_then(|stages| stages.value.entry(stage))
            else {
                continue;
            };
            for choice in wanted {
                let chosen = touched.axes.iter().zip(&choice);
                let chosen = chosen.map(|(&axis, &value)| (axis, &axes[axis].values[value].value));
                let tree = self.laid_over("stages", entry, chosen);
                if let Some(call) = tree
                    .entry("stages")
                    .and_then(|stages| stages.value.entry(stage))
                    .and_then(|entry| Call::read_stage(entry, problems))
                {
                    touched.calls.insert(choice, call);
                }
            }
        }
        let mut global = of_models;
        global.extend(seed);
        Matrix {
            axes,
            variants,
            stages,
            global,
        }
    }

    /// A pipeline of one stage or model, with values laid over.
    fn laid_over<'a>(
        &self,
        group: &str,
        entry: &Entry,
        chosen: impl Iterator<Item = (usize, &'a Yaml)>,
    ) -> Yaml {
        let one = Yaml::new(Kind::Map(vec![entry.clone()]), entry.value.span);
        let group = Entry {
            key: group.to_owned(),
            key_span: entry.key_span,
            value: one,
        };
        let mut tree = Yaml::new(Kind::Map(vec![group]), entry.value.span);
        for (axis, value) in chosen {
            let path = &self.axes[axis].path;
            let path: Vec<(&str, Span)> = path
                .iter()
                .map(|(part, span)| (part.as_str(), *span))
                .collect();
            overrides::set(&mut tree, &path, value);
        }
        tree
    }

    fn models(
        &self,
        axes: &[Axis],
        choice: &[usize],
        of_models: &[usize],
        pipeline: &Yaml,
        base: &BTreeMap<String, Model>,
        problems: &mut Problems,
    ) -> BTreeMap<String, Model> {
        let mut models = base.clone();
        let mut names: Vec<&str> = of_models
            .iter()
            .filter_map(|&axis| Some(self.axes[axis].path.get(1)?.0.as_str()))
            .collect();
        names.dedup();
        for name in names {
            let Some(entry) = pipeline
                .entry("models")
                .and_then(|models| models.value.entry(name))
            else {
                continue;
            };
            let is_own = |axis: &usize| {
                self.axes[*axis]
                    .path
                    .get(1)
                    .is_some_and(|part| part.0 == name)
            };
            let own = of_models.iter().copied().filter(is_own);
            let own = own.map(|axis| (axis, &axes[axis].values[choice[axis]].value));
            let tree = self.laid_over("models", entry, own);
            let read = tree
                .entry("models")
                .and_then(|models| models.value.entry(name))
                .and_then(|entry| pipeline::read_model(entry, problems));
            if let Some(model) = read {
                models.insert(name.to_owned(), model);
            }
        }
        models
    }
}
