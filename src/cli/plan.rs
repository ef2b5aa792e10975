//! `flow plan`: what a run would do, and why.

use clap::Args;
use serde_json::json;

use super::arguments::{PipelineArguments, SelectionArguments};
use super::error::{CliError, Exit};
use super::folders::Folders;
use super::output::Output;
use super::resolve::Outside;
use super::run::remark;
use super::shared;
use crate::cache::Cache;
use crate::engine::{self, NodePlan, NodeState, Plan, Reason};
use crate::graph::{Graph, GraphVariant, PartChange, compile};
use crate::ops::Catalog;
use crate::ui::{Style, count, plural};

/// Show what a run would do, and why; nothing is run
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    pipeline: PipelineArguments,

    #[command(flatten)]
    selection: SelectionArguments,

    /// Print the plan as JSON
    #[arg(long)]
    json: bool,

    /// End with code 3 where there is work to do
    #[arg(long)]
    exit_code: bool,

    /// Send nothing over the network
    #[arg(long)]
    offline: bool,
}

pub fn run(arguments: &Arguments, catalog: &Catalog, output: &Output) -> Result<Exit, CliError> {
    let plan = show(
        &arguments.pipeline,
        &arguments.selection,
        arguments.offline,
        arguments.json,
        catalog,
        output,
    )?;
    Ok(if arguments.exit_code && plan.has_work() {
        Exit::Pending
    } else {
        Exit::Ok
    })
}

/// Makes a plan without taking part in the cache, and prints it.
pub fn show(
    pipeline: &PipelineArguments,
    selection: &SelectionArguments,
    offline: bool,
    json: bool,
    catalog: &Catalog,
    output: &Output,
) -> Result<Plan, CliError> {
    let spec = pipeline.load()?;
    let graph = compile(&spec, catalog)?;
    remark(&spec, output);
    let folders = Folders::of_pipeline(&spec);
    let mut cache = Cache::open_read_only(&folders.cache)?;
    shared::connect(&mut cache, &folders, offline)?;
    let sink = output.sink();
    let outside = Outside {
        root: &folders.root,
        home: &folders.home,
        offline,
        cache: &cache,
        sink: &*sink,
    };
    let plan = engine::plan(&graph, &cache, &selection.selection(), &outside, &*sink)?;
    if json {
        output.print_json(&as_json(&graph, &plan))?;
    } else {
        output.print(&as_text(&plan, output.style))?;
        if !graph.variants.is_empty() {
            output.print(&extent(&graph))?;
        }
    }
    Ok(plan)
}

fn as_json(graph: &Graph, plan: &Plan) -> serde_json::Value {
    let count = |wanted: fn(&NodeState) -> bool| {
        plan.nodes.iter().filter(|node| wanted(&node.state)).count()
    };
    json!({
        "pipeline": graph.name,
        "profile": graph.profile,
        "variants": variants(graph, plan),
        "will_run": count(|state| matches!(state, NodeState::WillRun { .. })),
        "may_run": count(|state| matches!(state, NodeState::MayRun { .. })),
        "cached": count(|state| matches!(state, NodeState::Cached { .. })),
        "nodes": plan.nodes,
    })
}

/// Each variant of a matrix and its nodes; empty without one.
fn variants(graph: &Graph, plan: &Plan) -> Vec<serde_json::Value> {
    let variant = |variant: &GraphVariant| {
        let part = plan.part(&variant.nodes);
        let nodes: Vec<&String> = part.nodes.iter().map(|node| &node.name).collect();
        let params: serde_json::Map<_, _> = variant.params.iter().cloned().collect();
        json!({ "label": variant.label, "params": params, "nodes": nodes })
    };
    graph.variants.iter().map(variant).collect()
}

/// `6 variants: 15 nodes, where each by itself would make 24`.
pub fn extent(graph: &Graph) -> String {
    let alone: usize = graph
        .variants
        .iter()
        .map(|variant| variant.nodes.len())
        .sum();
    format!(
        "{}: {}, where each by itself would make {}",
        plural(graph.variants.len() as u64, "variant"),
        plural(graph.order.len() as u64, "node"),
        count(alone as u64)
    )
}

fn as_text(plan: &Plan, style: Style) -> String {
    let width = plan
        .nodes
        .iter()
        .map(|node| node.name.len())
        .max()
        .unwrap_or(0);
    let mut text = String::new();
    let (mut run, mut may) = (0, 0);
    for NodePlan { name, state, .. } in &plan.nodes {
        let name = format!("{name:width$}");
        match state {
            NodeState::WillRun { reasons } => {
                run += 1;
                text.push_str(&format!(
                    "{}  {name}  {}\n",
                    style.green("will run"),
                    reasons_text(reasons)
                ));
            }
            NodeState::MayRun { upstreams } => {
                may += 1;
                let upstreams = upstreams
                    .iter()
                    .map(|name| format!("`{name}`"))
                    .collect::<Vec<_>>()
                    .join(" or ");
                text.push_str(&format!(
                    "{}   {name}  if {upstreams} gives something else than before\n",
                    style.yellow("may run")
                ));
            }
            NodeState::Cached { elsewhere, .. } => {
                let place = if *elsewhere { "  (remote)" } else { "" };
                let line = format!("cached    {name}{place}");
                text.push_str(&format!("{}\n", style.dim(line.trim_end())));
            }
        }
    }
    let cached = plan.nodes.len() - run - may;
    text.push_str(&format!("{run} will run, {may} may run, {cached} cached\n"));
    text
}

/// `with.threshold: 0.3 → 0.5; files.query changed`.
pub fn reasons_text(reasons: &[Reason]) -> String {
    const MOST: usize = 4;
    let mut parts: Vec<_> = reasons.iter().take(MOST).map(reason_text).collect();
    if reasons.len() > MOST {
        parts.push(format!("and {} more", reasons.len() - MOST));
    }
    parts.join("; ")
}

pub fn reason_text(reason: &Reason) -> String {
    match reason {
        Reason::New => "never ran before".to_owned(),
        Reason::Forced => "forced".to_owned(),
        Reason::Damaged { problem } => format!("its result cannot be used: {problem}"),
        Reason::Changed(change) => change_text(change),
    }
}

/// One changed part of a fingerprint, old and new.
pub fn change_text(change: &PartChange) -> String {
    let short = |value: &str| {
        let mut text: String = value.chars().take(40).collect();
        if text.len() < value.len() {
            text.push('…');
        }
        text
    };
    match (&change.old, &change.new) {
        (Some(old), Some(new)) => format!("{}: {} → {}", change.part, short(old), short(new)),
        (None, Some(new)) => format!("{}: new, {}", change.part, short(new)),
        (Some(old), None) => format!("{}: gone, was {}", change.part, short(old)),
        (None, None) => change.part.clone(),
    }
}
