//! From a checked spec to a graph.

use std::collections::HashMap;

use crate::config::{Diagnostic, Diagnostics, PipelineSpec, Span};
use crate::graph::Graph;
use crate::graph::assemble::Compiled;
use crate::graph::columns::Flow;
use crate::graph::draft::{Draft, Stage, Wire};
use crate::graph::expand::Expander;
use crate::graph::instances::Instances;
use crate::graph::order::order;
use crate::graph::wire::Wirer;
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
    let instances = Instances::new(spec);
    let mut expander = Expander::new(spec, &instances, catalog, check_data);
    expander.expand();
    let Expander {
        sources,
        mut problems,
        mut drafts,
        mut stages,
        ..
    } = expander;
    let mut wirer = Wirer {
        drafts: &drafts,
        stages: &mut stages,
        instances: &instances,
        problems: &mut problems,
    };
    let wires = wirer.wire();
    let shown: Vec<_> = (0..instances.variants())
        .map(|variant| wirer.shown(&spec.show, variant))
        .collect();
    let parents: Vec<Vec<usize>> = wires
        .iter()
        .map(|wires| wires.iter().map(|wire| wire.from.draft).collect())
        .collect();
    let (order, cycles) = order(&parents);
    problems.extend(
        cycles
            .iter()
            .map(|cycle| cycle_problem(cycle, &drafts, &wires, &stages)),
    );
    Flow {
        catalog,
        drafts: &mut drafts,
        stages: &mut stages,
        wires: &wires,
        problems: &mut problems,
        answers: HashMap::new(),
    }
    .run(&order);
    if !problems.is_empty() {
        return Err(Diagnostics::new(sources, problems));
    }
    let compiled = Compiled {
        spec,
        instances: &instances,
        drafts,
        stages: &stages,
        wires,
        order,
        shown,
    };
    Ok(compiled.assemble())
}

/// Names a cycle by its stages, or by its steps where it lies in one stage, at the first of its wires.
fn cycle_problem(
    cycle: &[usize],
    drafts: &[Draft],
    wires: &[Vec<Wire>],
    stages: &[Stage],
) -> Diagnostic {
    let of_cycle: Vec<_> = cycle.iter().map(|&draft| drafts[draft].stage).collect();
    let in_one_stage = of_cycle.iter().all(|stage| *stage == of_cycle[0]);
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
        wire_place(wire, first, drafts, stages)
    });
    Diagnostic::new(
        place,
        format!("these wait for each other: {}", names.join(" → ")),
    )
    .label("this input closes the cycle")
    .help("remove or change one of the inputs named here")
}

/// Where the pipeline wires the input, if it comes through an input of the stage.
fn wire_place(wire: &Wire, draft: usize, drafts: &[Draft], stages: &[Stage]) -> Span {
    let through = drafts[draft]
        .inputs
        .iter()
        .find(|input| input.port == wire.port)
        .map(|input| input.target.as_str());
    let call = stages[drafts[draft].stage].call;
    match (wire.bound, through) {
        (Some(_), Some(port)) => call
            .inputs
            .iter()
            .find(|input| input.port == port)
            .map_or(wire.span, |input| input.span),
        _ => wire.span,
    }
}
