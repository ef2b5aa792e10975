//! The runs of a matrix in one table: what varies, the final numbers that came out differently, which is best.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;
use serde_json::Value;

use crate::config::short_names;
use crate::engine::{NodeStatus, RunState};
use crate::graph::Fingerprint;
use crate::insight::Decimals;
use crate::insight::direction::more_is_better;
use crate::runs::{RunGraph, RunView};

/// The schema of `flow compare GROUP --json`. Lists by variant are in the order of `variants`; the first is the one that the others are
/// compared with.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Group {
    pub id: String,
    pub pipeline: String,
    pub profile: Option<String>,
    /// What varies, by key and by the shortest name that tells it apart.
    pub axes: Vec<(String, String)>,
    pub variants: Vec<VariantRow>,
    /// Final numbers that are not the same in all variants, those that tell most first.
    pub metrics: Vec<GroupMetric>,
    /// Final numbers that are the same in all variants.
    pub same: BTreeMap<String, f64>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VariantRow {
    /// Of its run.
    pub id: String,
    pub label: String,
    /// In the order of `axes`.
    pub params: Vec<Value>,
    pub state: RunState,
    pub error: Option<String>,
    /// Nodes it has, and those that no other variant has.
    pub nodes: usize,
    pub own_nodes: usize,
    /// Time of the nodes that ran for it alone, in seconds.
    pub own_seconds: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GroupMetric {
    /// `node.name`.
    pub name: String,
    pub short: String,
    /// `None` where the name does not tell.
    pub more_is_better: Option<bool>,
    pub values: Vec<Option<f64>>,
    /// Less the value of the first variant.
    pub differences: Vec<Option<f64>>,
    /// Positions of the best; empty where that is not known or all are as good.
    pub best: Vec<usize>,
}

impl GroupMetric {
    /// How its values are shown: counts without decimals.
    pub fn decimals(&self) -> Decimals {
        let values = || self.values.iter().flatten().copied();
        if self.more_is_better.is_none() && values().all(|value| value.fract() == 0.0) {
            Decimals::NONE
        } else {
            Decimals::of(values())
        }
    }
}

/// Lays the runs of one matrix beside each other; `graph` is the first one's.
pub fn group(runs: &[RunView], graph: &RunGraph) -> Group {
    let first = &runs[0].head;
    let of = |run: &RunView| run.head.variant.clone();
    let keys: Vec<String> = of(&runs[0])
        .map(|variant| variant.params.into_iter().map(|(key, _)| key).collect())
        .unwrap_or_default();
    let names = short_names(&keys.iter().map(String::as_str).collect::<Vec<_>>());
    let mut makers: HashMap<Fingerprint, usize> = HashMap::new();
    for node in runs.iter().flat_map(|run| &run.nodes) {
        if let Some(fingerprint) = node.fingerprint {
            *makers.entry(fingerprint).or_default() += 1;
        }
    }
    let row = |run: &RunView| {
        let variant = of(run);
        let is_own = |fingerprint: &Option<Fingerprint>| {
            fingerprint.is_none_or(|fingerprint| makers[&fingerprint] == 1)
        };
        let own = run
            .nodes
            .iter()
            .filter(|node| node.status == NodeStatus::Ran && is_own(&node.fingerprint));
        VariantRow {
            id: run.head.id.clone(),
            label: variant
                .as_ref()
                .map(|variant| variant.label.clone())
                .unwrap_or_default(),
            state: run.head.state,
            error: run.head.error.clone(),
            nodes: variant
                .as_ref()
                .map_or(run.nodes.len(), |variant| variant.nodes),
            own_nodes: variant.as_ref().map_or(0, |variant| variant.own_nodes),
            // A sum of nothing would be -0.
            own_seconds: own.fold(0.0, |sum, node| sum + node.seconds),
            params: variant
                .map(|variant| variant.params.into_iter().map(|(_, value)| value).collect())
                .unwrap_or_default(),
        }
    };
    let (metrics, same) = metrics(runs, graph);
    Group {
        id: of(&runs[0]).map_or_else(|| first.id.clone(), |variant| variant.group),
        pipeline: first.pipeline.clone(),
        profile: first.profile.clone(),
        axes: keys.into_iter().zip(names).collect(),
        variants: runs.iter().map(row).collect(),
        metrics,
        same,
    }
}

fn metrics(runs: &[RunView], graph: &RunGraph) -> (Vec<GroupMetric>, BTreeMap<String, f64>) {
    let mut names: Vec<&str> = runs
        .iter()
        .flat_map(|run| run.head.metrics.keys().map(String::as_str))
        .collect();
    names.sort_unstable();
    names.dedup();
    let values = |name: &str| -> Vec<Option<f64>> {
        runs.iter()
            .map(|run| run.head.metrics.get(name).copied())
            .collect()
    };
    let (mut varied, mut same) = (Vec::new(), BTreeMap::new());
    for name in names {
        let values = values(name);
        match values[0] {
            Some(value) if values.iter().all(|other| *other == Some(value)) => {
                same.insert(name.to_owned(), value);
            }
            _ => varied.push((name, values)),
        }
    }
    let place = |name: &str| {
        let node = name.rsplit_once('.').map_or(name, |(node, _)| node);
        graph.nodes.iter().position(|known| known.name == node)
    };
    // The ends of an interval say less than what is between them.
    let is_bound = |name: &str| {
        ["_low", "_high"].into_iter().any(|end| {
            name.strip_suffix(end)
                .is_some_and(|of| runs[0].head.metrics.contains_key(of))
        })
    };
    // What is known to be good or bad first, then what comes late in the pipeline.
    varied.sort_by_key(|(name, _)| {
        let place = place(name).map_or(usize::MAX, |place| usize::MAX - 1 - place);
        (is_bound(name), more_is_better(name).is_none(), place)
    });
    let all: Vec<&str> = varied.iter().map(|(name, _)| *name).collect();
    let metric = |((name, values), short): ((&str, Vec<Option<f64>>), String)| GroupMetric {
        name: name.to_owned(),
        short,
        more_is_better: more_is_better(name),
        differences: values
            .iter()
            .map(|value| Some((*value)? - values[0]?))
            .collect(),
        best: best(more_is_better(name), &values),
        values,
    };
    let shorts = short_names(&all);
    (varied.into_iter().zip(shorts).map(metric).collect(), same)
}

fn best(more_is_better: Option<bool>, values: &[Option<f64>]) -> Vec<usize> {
    let known = || {
        values
            .iter()
            .flatten()
            .copied()
            .filter(|value| value.is_finite())
    };
    let best = match more_is_better {
        Some(true) => known().max_by(f64::total_cmp),
        Some(false) => known().min_by(f64::total_cmp),
        None => None,
    };
    let Some(best) = best.filter(|best| known().any(|value| value != *best)) else {
        return Vec::new();
    };
    let is_best = |place: &usize| values[*place] == Some(best);
    (0..values.len()).filter(is_best).collect()
}

#[cfg(test)]
mod tests {
    use super::best;

    #[test]
    fn the_best_is_known_where_the_direction_is() {
        let values = [Some(2.0), None, Some(3.0), Some(f64::NAN), Some(3.0)];
        assert_eq!(best(Some(true), &values), [2, 4]);
        assert_eq!(best(Some(false), &values), [0]);
        assert_eq!(best(None, &values), [0; 0]);
        assert_eq!(best(Some(true), &[Some(1.0), Some(1.0)]), [0; 0]);
        assert_eq!(best(Some(true), &[None, Some(1.0)]), [0; 0]);
    }
}
