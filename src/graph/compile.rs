//! From a checked spec to a graph.

use std::collections::{BTreeMap, HashMap};

use petgraph::graph::{DiGraph, NodeIndex};

use crate::config::{Diagnostic, Diagnostics, PipelineSpec, Span};
use crate::graph::columns::Flow;
use crate::graph::draft::{Draft, From, Stage, Wire};
use crate::graph::expand::Expander;
use crate::graph::order::order;
use crate::graph::wire::Wirer;
use crate::graph::{Graph, Input, Link, Shown};
use crate::ops::Catalog;

/// Expands stages into nodes, wires ports, orders the nodes or names the cycle, takes columns through.
///
/// Reads stage definitions and the text files params name. The error holds every problem found, those of the spec included.
pub fn compile(spec: &PipelineSpec, catalog: &Catalog) -> Result<Graph, Diagnostics> {
    compile_with(spec, catalog, true)
}

/// Like [`compile`], but data and models that are not there are no problem: for looking at a pipeline, and for fetching.
pub fn compile_without_data(spec: &PipelineSpec, catalog: &Catalog) -> Result<Graph, Diagnostics> {
    compile_with(spec, catalog, false)
}

fn compile_with(
    spec: &PipelineSpec,
    catalog: &Catalog,
    check_data: bool,
) -> Result<Graph, Diagnostics> {
    let mut expander = Expander::new(spec, catalog, check_data);
    expander.expand();
    let Expander {
        sources,
        mut problems,
        mut drafts,
        mut stages,
        ..
    } = expander;
    let by_name: HashMap<_, _> = spec
        .stages
        .iter()
        .enumerate()
        .map(|(index, call)| (call.name.as_str(), index))
        .collect();
    let mut wirer = Wirer {
        drafts: &drafts,
        stages: &mut stages,
        by_name,
        problems: &mut problems,
    };
    let wires = wirer.wire();
    let shown = wirer.shown(&spec.show);
    let parents: Vec<Vec<usize>> = wires
        .iter()
        .map(|wires| wires.iter().map(|wire| wire.from.draft).collect())
        .collect();
    let (order, cycles) = order(&parents);
    problems.extend(
        cycles
            .iter()
            .map(|cycle| cycle_problem(cycle, &drafts, &wires, spec)),
    );
    Flow {
        catalog,
        drafts: &mut drafts,
        stages: &mut stages,
        wires: &wires,
        problems: &mut problems,
    }
    .run(&order);
    if !problems.is_empty() {
        return Err(Diagnostics::new(sources, problems));
    }
    Ok(assemble(spec, drafts, &stages, wires, order, shown))
}

fn assemble(
    spec: &PipelineSpec,
    drafts: Vec<Draft>,
    stages: &[Stage],
    wires: Vec<Vec<Wire>>,
    order: Vec<usize>,
    shown: Vec<(String, From)>,
) -> Graph {
    let mut exports = BTreeMap::new();
    for stage in stages {
        for (name, from) in &stage.exports {
            let target = format!("{}.{}", drafts[from.draft].node.name, from.output);
            exports.insert(format!("{}.{name}", stage.call.name), target);
        }
    }
    let shown = shown.into_iter().map(|(name, from)| Shown {
        name,
        node: drafts[from.draft].node.name.clone(),
        output: from.output,
    });
    let shown = shown.collect();
    let mut dag = DiGraph::with_capacity(drafts.len(), drafts.len());
    for draft in drafts {
        dag.add_node(draft.node);
    }
    for (index, wires) in wires.into_iter().enumerate() {
        for wire in wires {
            let (from, to) = (NodeIndex::new(wire.from.draft), NodeIndex::new(index));
            let input = Input {
                port: wire.port.clone(),
                node: dag[from].name.clone(),
                output: wire.from.output.clone(),
            };
            dag[to].inputs.push(input);
            dag.add_edge(
                from,
                to,
                Link {
                    output: wire.from.output,
                    input: wire.port,
                },
            );
        }
    }
    Graph {
        name: spec.name.clone(),
        profile: spec.profile.clone(),
        seed: spec.seed,
        path: spec.path.clone(),
        root: spec.root.clone(),
        dag,
        order: order.into_iter().map(NodeIndex::new).collect(),
        exports,
        shown,
    }
}

/// Names a cycle by its stages, or by its steps where it lies in one stage, at the first of its wires.
fn cycle_problem(
    cycle: &[usize],
    drafts: &[Draft],
    wires: &[Vec<Wire>],
    spec: &PipelineSpec,
) -> Diagnostic {
    let stages: Vec<_> = cycle.iter().map(|&draft| drafts[draft].stage).collect();
    let in_one_stage = stages.iter().all(|stage| *stage == stages[0]);
    let mut names: Vec<&str> = cycle
        .iter()
        .map(|&draft| {
            if in_one_stage {
                drafts[draft].node.name.as_str()
            } else {
                drafts[draft].node.stage.as_str()
            }
        })
        .collect();
    names.dedup();
    if names.len() > 1 && names.first() == names.last() {
        names.pop();
    }
    names.push(names[0]);
    // The wire by which the cycle comes back to its first node.
    let (first, last) = (cycle[0], cycle[cycle.len() - 1]);
    let wire = wires[first].iter().find(|wire| wire.from.draft == last);
    let place = wire.map_or(drafts[first].span, |wire| {
        wire_place(wire, first, drafts, spec)
    });
    Diagnostic::new(
        place,
        format!("these wait for each other: {}", names.join(" → ")),
    )
    .label("this input closes the cycle")
    .help("remove or change one of the inputs named here")
}

/// Where the pipeline wires the input, if it comes through an input of the stage.
fn wire_place(wire: &Wire, draft: usize, drafts: &[Draft], spec: &PipelineSpec) -> Span {
    let through = drafts[draft]
        .inputs
        .iter()
        .find(|input| input.port == wire.port)
        .map(|input| input.target.as_str());
    let call = &spec.stages[drafts[draft].stage];
    match (wire.bound, through) {
        (Some(_), Some(port)) => call
            .inputs
            .iter()
            .find(|input| input.port == port)
            .map_or(wire.span, |input| input.span),
        _ => wire.span,
    }
}
