//! Nodes of several variants that are the same become one, and the others get names that tell them apart.

use std::collections::HashMap;

use crate::config::{Matrix, Variant};
use crate::graph::draft::{Draft, Wire};

/// What has become of each draft: the draft that stands for it, and for those the variants that share them.
pub(super) struct Merged {
    pub stands_for: Vec<usize>,
    /// Empty for a draft that another one stands for.
    pub variants: Vec<Vec<usize>>,
}

/// Merges drafts of one name that have the same op, params, files, data, models, seed and resources, and read the same.
/// `order` is topological; `variants` are those of each draft's stage.
pub(super) fn merge(
    drafts: &[Draft],
    wires: &[Vec<Wire>],
    order: &[usize],
    variants: impl Fn(usize) -> Vec<usize>,
) -> Merged {
    let mut of_name: HashMap<&str, usize> = HashMap::with_capacity(drafts.len());
    for draft in drafts {
        *of_name.entry(&draft.node.name).or_default() += 1;
    }
    let mut merged = Merged {
        stands_for: (0..drafts.len()).collect(),
        variants: vec![Vec::new(); drafts.len()],
    };
    let mut known: HashMap<(&str, String), usize> = HashMap::new();
    for &index in order {
        let name = drafts[index].node.name.as_str();
        let stands_for = if of_name[name] == 1 {
            index
        } else {
            let key = identity(&drafts[index], &wires[index], &merged.stands_for);
            *known.entry((name, key)).or_insert(index)
        };
        merged.stands_for[index] = stands_for;
        merged.variants[stands_for].extend(variants(index));
    }
    merged
        .variants
        .iter_mut()
        .for_each(|all| all.sort_unstable());
    merged
}

/// Everything that can make two nodes of one name differ.
fn identity(draft: &Draft, wires: &[Wire], stands_for: &[usize]) -> String {
    let node = &draft.node;
    let files: Vec<_> = node
        .files
        .iter()
        .map(|(name, file)| (name, file.digest))
        .collect();
    let reads: Vec<_> = wires
        .iter()
        .map(|wire| (&wire.port, stands_for[wire.from.draft], &wire.from.output))
        .collect();
    let resources = (node.resources.cpu, node.resources.gpu);
    let own = (
        &node.op,
        node.op_version,
        &node.params,
        node.seed,
        resources,
    );
    let plain = serde_json::to_string(&(own, files, reads)).expect("a node is plain data");
    format!("{plain} {:?} {:?}", node.paths, node.models)
}

/// What tells a node apart that only some variants have: the axes on which these agree, where no other variant has the same; else
/// the whole label of the first. Empty for a node that all variants share.
pub(super) fn label(matrix: &Matrix, of: &[usize]) -> String {
    let all = &matrix.variants;
    let Some((&first, rest)) = of.split_first() else {
        return String::new();
    };
    if of.len() == all.len() {
        return String::new();
    }
    let choice = |variant: usize, axis: usize| all[variant].choice[axis];
    let agrees = |axis: &usize| {
        rest.iter()
            .all(|&other| choice(other, *axis) == choice(first, *axis))
    };
    let axes: Vec<usize> = (0..matrix.axes.len()).filter(agrees).collect();
    let fits = |variant: &Variant| {
        axes.iter()
            .all(|&axis| variant.choice[axis] == choice(first, axis))
    };
    if all.iter().filter(|variant| fits(variant)).count() > of.len() {
        return all[first].label.clone();
    }
    // An axis on which all variants agree says nothing.
    let varies = |axis: &usize| {
        all.iter()
            .any(|other| other.choice[*axis] != choice(first, *axis))
    };
    let parts = axes
        .iter()
        .copied()
        .filter(|axis| varies(axis))
        .map(|axis| {
            let axis_of = &matrix.axes[axis];
            format!(
                "{}={}",
                axis_of.name,
                axis_of.values[choice(first, axis)].label
            )
        });
    parts.collect::<Vec<_>>().join(",")
}
