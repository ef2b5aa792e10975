//! Takes column names through the graph, so that a missing column is found before anything runs.

use std::collections::{BTreeMap, HashMap};

use crate::config::{
    ArtifactKind, Columns, Diagnostic, Entry, Kind, Port, Problems, Span, suggest,
};
use crate::graph::Node;
use crate::graph::draft::{Draft, From, Stage, Wire};
use crate::ops::{Catalog, Problem};

pub(super) struct Flow<'a, 'spec> {
    pub catalog: &'a Catalog,
    pub drafts: &'a mut [Draft],
    pub stages: &'a mut [Stage<'spec>],
    pub wires: &'a [Vec<Wire>],
    pub problems: &'a mut Problems,
    /// What ops said of the columns they will give, by what they were asked.
    pub answers: HashMap<String, BTreeMap<String, Option<Columns>>>,
}

/// All that the columns of a node can depend on, its name left out.
fn question(node: &Node, inputs: &BTreeMap<String, Option<Columns>>) -> String {
    let files: Vec<_> = node
        .files
        .iter()
        .map(|(name, file)| (name, file.digest))
        .collect();
    let (params, paths) = (&node.params, &node.paths);
    format!(
        "{} {params:?} {files:?} {paths:?} {:?} {inputs:?}",
        node.op, node.models
    )
}

impl Flow<'_, '_> {
    /// Visits the drafts in the order of the data and asks each op for the columns it will give.
    pub(super) fn run(&mut self, order: &[usize]) {
        for &draft in order {
            let mut fits = true;
            for wire in &self.wires[draft] {
                fits &= self.input_fits(draft, wire);
            }
            if fits && self.drafts[draft].sound {
                self.ask(draft);
            }
            self.promises(draft);
        }
        self.check_promises();
    }

    /// Whether an input has the columns that the stage and the op want.
    fn input_fits(&mut self, draft: usize, wire: &Wire) -> bool {
        let stage = self.drafts[draft].stage;
        if let Some(index) = wire.bound {
            let bound = &self.stages[stage].bound[index];
            if bound.columns_fit.is_none() {
                let owner = format!("the stage `{}`", self.stages[stage].call.uses);
                let problem = self.missing(
                    &owner,
                    &bound.input.port,
                    &bound.port,
                    &bound.input.target,
                    &wire.from,
                    bound.input.span,
                );
                self.stages[stage].bound[index].columns_fit = Some(problem.is_none());
                self.problems.extend(problem);
            }
            if self.stages[stage].bound[index].columns_fit == Some(false) {
                return false;
            }
        }
        let Some(port) = self.drafts[draft].interface.inputs.get(&wire.port) else {
            return true;
        };
        let node = &self.drafts[draft].node;
        let target = &self.drafts[wire.from.draft].node.name;
        let problem = self.missing(
            &format!("the op `{}`", node.op),
            &wire.port,
            port,
            target,
            &wire.from,
            wire.span,
        );
        let fits = problem.is_none();
        self.problems.extend(problem);
        fits
    }

    /// The problem of an input that lacks columns.
    fn missing(
        &self,
        owner: &str,
        input: &str,
        port: &Port,
        target: &str,
        from: &From,
        span: Span,
    ) -> Option<Diagnostic> {
        let there = self.drafts[from.draft]
            .node
            .output(&from.output)?
            .columns
            .as_ref()?;
        let names = || there.iter().map(|(name, _)| name.as_str());
        // DuckDB does not tell upper from lower case in names.
        let missing = port
            .columns
            .iter()
            .map(|(name, _)| name.as_str())
            .filter(|wanted| !names().any(|name| name.eq_ignore_ascii_case(wanted)));
        let missing: Vec<_> = missing.collect();
        let first = missing.first()?;
        let (noun, list) = (
            if missing.len() == 1 {
                "column"
            } else {
                "columns"
            },
            suggest::list(missing.iter().copied()),
        );
        let problem = Diagnostic::new(
            span,
            format!(
                "the input `{input}` of {owner} needs the {noun} {list}, which `{target}` does not have"
            ),
        );
        Some(
            problem
                .guess(suggest::closest(first, names()))
                .help(format!(
                    "`{target}` has the columns {}",
                    suggest::list(names())
                )),
        )
    }

    fn ask(&mut self, draft: usize) {
        let inputs: BTreeMap<String, Option<Columns>> = self.wires[draft]
            .iter()
            .map(|wire| {
                let output = self.drafts[wire.from.draft].node.output(&wire.from.output);
                (
                    wire.port.clone(),
                    output.and_then(|output| output.columns.clone()),
                )
            })
            .collect();
        let Some(op) = self.catalog.get(&self.drafts[draft].node.op) else {
            return;
        };
        // Variants of a matrix ask the same again and again; an answer may take a database a millisecond.
        let question = question(&self.drafts[draft].node, &inputs);
        let answer = match self.answers.get(&question) {
            Some(known) => Ok(known.clone()),
            None => op.columns(&self.drafts[draft].node, &inputs),
        };
        match answer {
            Ok(columns) => {
                self.answers
                    .entry(question)
                    .or_insert_with(|| columns.clone());
                for output in &mut self.drafts[draft].node.outputs {
                    if output.kind == ArtifactKind::Table {
                        output.columns = columns.get(&output.name).cloned().flatten();
                    }
                }
            }
            Err(problems) => {
                for problem in problems {
                    let diagnostic = self.place(draft, problem);
                    self.problems.push(diagnostic);
                }
            }
        }
    }

    /// Points an op's problem at the param or input it names.
    fn place(&self, draft: usize, problem: Problem) -> Diagnostic {
        let Draft {
            with, inputs, span, ..
        } = &self.drafts[draft];
        let place = match problem.at.strip_prefix("inputs.") {
            Some(port) => inputs
                .iter()
                .find(|input| input.port == port)
                .map(|input| input.span),
            None => find(with, &problem.at),
        };
        Diagnostic {
            help: problem.help,
            ..Diagnostic::new(place.unwrap_or(*span), problem.message)
        }
    }

    /// Where an op cannot tell its columns, the stage's promise is taken.
    fn promises(&mut self, draft: usize) {
        let stage = &self.stages[self.drafts[draft].stage];
        let Some(definition) = &stage.definition else {
            return;
        };
        for output in definition
            .outputs
            .iter()
            .filter(|output| !output.columns.is_empty())
        {
            let (step, name) = output
                .from
                .split_once('.')
                .map_or((output.from.as_str(), None), |(step, name)| {
                    (step, Some(name))
                });
            if !stage
                .steps
                .iter()
                .any(|(candidate, index)| candidate == step && *index == Some(draft))
            {
                continue;
            }
            for mine in self.drafts[draft].node.outputs.iter_mut() {
                if name.is_none_or(|name| mine.name == name)
                    && mine.columns.is_none()
                    && mine.kind == ArtifactKind::Table
                {
                    mine.columns = Some(output.columns.clone());
                }
            }
        }
    }

    /// Reports outputs of stages that do not have the columns they promise.
    fn check_promises(&mut self) {
        for stage in self.stages.iter() {
            let Some(definition) = &stage.definition else {
                continue;
            };
            for output in definition
                .outputs
                .iter()
                .filter(|output| !output.columns.is_empty())
            {
                let (step, name) = output
                    .from
                    .split_once('.')
                    .map_or((output.from.as_str(), None), |(step, name)| {
                        (step, Some(name))
                    });
                let Some(draft) = stage
                    .steps
                    .iter()
                    .find(|(candidate, _)| candidate == step)
                    .and_then(|(_, draft)| *draft)
                else {
                    continue;
                };
                let given = self.drafts[draft]
                    .node
                    .outputs
                    .iter()
                    .find(|given| name.is_none_or(|name| given.name == name));
                let Some(columns) = given.and_then(|given| given.columns.as_ref()) else {
                    continue;
                };
                let names = || columns.iter().map(|(name, _)| name.as_str());
                let missing: Vec<_> = output
                    .columns
                    .iter()
                    .map(|(name, _)| name.as_str())
                    .filter(|wanted| !names().any(|name| name.eq_ignore_ascii_case(wanted)))
                    .collect();
                if let Some(first) = missing.first() {
                    let message = format!(
                        "the output `{}` promises {}, which `{}` does not give",
                        output.name,
                        suggest::list(missing.iter().copied()),
                        output.from
                    );
                    let problem = Diagnostic::new(output.span, message)
                        .guess(suggest::closest(first, names()));
                    self.problems.push(problem.help(format!(
                        "`{}` gives {}",
                        output.from,
                        suggest::list(names())
                    )));
                }
            }
        }
    }
}

/// The place of a dotted param, or of as much of it as is there.
fn find(with: &[Entry], dotted: &str) -> Option<Span> {
    let (mut entries, mut place) = (with, None);
    for part in dotted.split('.') {
        let Some(entry) = entries.iter().find(|entry| entry.key == part) else {
            break;
        };
        place = Some(entry.value.span);
        match &entry.value.kind {
            Kind::Map(fields) => entries = fields,
            _ => break,
        }
    }
    place
}
