//! Follows what inputs name to the outputs that give it, and checks that tables go where tables are taken.

use crate::config::{ArtifactKind, Diagnostic, InputRef, Port, Problems, StageOutput, suggest};
use crate::graph::draft::{Bound, Draft, From, Stage, Wire};
use crate::graph::instances::Instances;

pub(super) struct Wirer<'a, 'spec> {
    pub drafts: &'a [Draft],
    pub stages: &'a mut [Stage<'spec>],
    pub instances: &'a Instances<'spec>,
    pub problems: &'a mut Problems,
}

impl Wirer<'_, '_> {
    /// The wires of every draft.
    pub(super) fn wire(&mut self) -> Vec<Vec<Wire>> {
        self.bind_stages();
        (0..self.drafts.len())
            .map(|draft| self.wires_of(draft))
            .collect()
    }

    /// Resolves the inputs of stages, and checks the outputs stages declare.
    fn bind_stages(&mut self) {
        for stage in 0..self.stages.len() {
            for bound in 0..self.stages[stage].bound.len() {
                let Bound { input, port, .. } = self.stages[stage].bound[bound].clone();
                let from = self.in_pipeline(&input, self.variant_of(stage));
                let owner = format!("the stage `{}`", self.stages[stage].call.uses);
                let from = from.filter(|from| self.kind_fits(&owner, &input, &port, from));
                self.stages[stage].bound[bound].from = from;
            }
            if let Some(definition) = self.stages[stage].definition.clone() {
                for output in &definition.outputs {
                    if let Some(from) = self.stage_output(stage, output) {
                        if output.show {
                            self.is_table(&reference(output), &from);
                        }
                        self.stages[stage].exports.push((output.name.clone(), from));
                    }
                }
            }
        }
    }

    /// The tables to print at the end of a run, by the name the user knows them by: those that stages show by themselves,
    /// then those of the pipeline's `show:`, as a variant has them. Called once the stages are bound.
    pub(super) fn shown(&mut self, asked: &[InputRef], variant: usize) -> Vec<(String, From)> {
        let mut shown: Vec<(String, From)> = Vec::new();
        for (stage, instance) in self.stages.iter().zip(&self.instances.list) {
            if instance.variants.binary_search(&variant).is_err() {
                continue;
            }
            let Some(definition) = &stage.definition else {
                continue;
            };
            for output in definition.outputs.iter().filter(|output| output.show) {
                let from = stage.exports.iter().find(|(name, _)| *name == output.name);
                if let Some((_, from)) = from {
                    let name = format!("{}.{}", stage.call.name, output.name);
                    shown.push((name, from.clone()));
                }
            }
        }
        for reference in asked {
            if let Some(from) = self.in_pipeline(reference, variant)
                && self.is_table(reference, &from)
                && !shown.iter().any(|(_, known)| *known == from)
            {
                shown.push((reference.target.clone(), from));
            }
        }
        shown
    }

    /// Whether what `show` names are rows.
    fn is_table(&mut self, reference: &InputRef, from: &From) -> bool {
        let node = &self.drafts[from.draft];
        let output = node.node.output(&from.output);
        let fits = !node.sound || output.is_none_or(|output| output.kind == ArtifactKind::Table);
        if !fits {
            let message = format!(
                "`show` prints the rows of a table, `{}` gives files",
                reference.target
            );
            let help = format!(
                "leave it out; `flow data latest {}` lists them",
                reference.target
            );
            self.problems
                .push(Diagnostic::new(reference.span, message).help(help));
        }
        fits
    }

    fn wires_of(&mut self, draft: usize) -> Vec<Wire> {
        let node = &self.drafts[draft];
        let (stage, inputs) = (node.stage, &node.inputs);
        let mut wires = Vec::new();
        for input in inputs {
            let port = node.interface.inputs.get(&input.port);
            let bound = self.stages[stage]
                .bound
                .iter()
                .position(|bound| bound.input.port == input.target);
            let definition = self.stages[stage].definition.clone();
            let from = match (&definition, bound) {
                (None, _) => self.in_pipeline(input, self.variant_of(stage)),
                (Some(_), Some(bound)) => self.stages[stage].bound[bound].from.clone(),
                (Some(definition), None) => match definition.interface.inputs.get(&input.target) {
                    Some(declared) => {
                        // A required input that is not wired was reported at the call.
                        if declared.optional && port.is_some_and(|port| !port.optional) {
                            let message = format!(
                                "the input `{}` may be absent, but `{}` of the op `{}` is needed",
                                input.target, input.port, node.node.op
                            );
                            self.problems.push(
                                Diagnostic::new(input.span, message)
                                    .help("make the stage's input required"),
                            );
                        }
                        None
                    }
                    None => self.in_stage(
                        stage,
                        input,
                        &definition
                            .interface
                            .inputs
                            .keys()
                            .map(String::as_str)
                            .collect::<Vec<_>>(),
                    ),
                },
            };
            let Some(from) = from else { continue };
            let owner = format!("the op `{}`", node.node.op);
            if port.is_none_or(|port| self.kind_fits(&owner, input, port, &from)) {
                wires.push(Wire {
                    port: input.port.clone(),
                    from,
                    span: input.span,
                    bound,
                });
            }
        }
        wires
    }

    /// A variant that an instance belongs to; all of them read the same.
    fn variant_of(&self, stage: usize) -> usize {
        self.instances.list[stage].variants[0]
    }

    /// `stage` or `stage.output`, as a variant means it.
    fn in_pipeline(&mut self, input: &InputRef, variant: usize) -> Option<From> {
        let (name, output) = split(&input.target);
        let Some(stage) = self.instances.find(name, variant) else {
            let names = || self.instances.names.iter().copied();
            let problem = Diagnostic::new(input.span, format!("there is no stage `{name}`"))
                .guess(suggest::closest(name, names()));
            let problem = problem.help(format!("the stages are {}", suggest::list(names())));
            self.problems.push(problem);
            return None;
        };
        if self.stages[stage].broken {
            return None;
        }
        let Some(definition) = self.stages[stage].definition.clone() else {
            let draft = self.stages[stage]
                .steps
                .first()
                .and_then(|(_, draft)| *draft)?;
            return self.of_draft(input, name, draft, output);
        };
        let chosen = self.choose(
            input,
            name,
            output,
            definition.outputs.iter().map(|output| output.name.as_str()),
        )?;
        let output = definition
            .outputs
            .iter()
            .find(|output| output.name == chosen)?;
        self.stage_output(stage, output)
    }

    /// Another step of the stage: `step` or `step.output`.
    fn in_stage(&mut self, stage: usize, input: &InputRef, ports: &[&str]) -> Option<From> {
        let (name, output) = split(&input.target);
        let Some(draft) = self.stages[stage]
            .steps
            .iter()
            .find(|(step, _)| step == name)
            .map(|(_, draft)| *draft)
        else {
            let names = || {
                self.stages[stage]
                    .steps
                    .iter()
                    .map(|(step, _)| step.as_str())
                    .chain(ports.iter().copied())
            };
            let problem = Diagnostic::new(
                input.span,
                format!("the stage has no step or input `{name}`"),
            )
            .guess(suggest::closest(name, names()));
            let problem = problem.help(format!("there are {}", suggest::list(names())));
            self.problems.push(problem);
            return None;
        };
        self.of_draft(input, name, draft?, output)
    }

    /// The step output behind a declared output of a stage.
    fn stage_output(&mut self, stage: usize, output: &StageOutput) -> Option<From> {
        self.in_stage(stage, &reference(output), &[])
    }

    fn of_draft(
        &mut self,
        input: &InputRef,
        name: &str,
        draft: usize,
        output: Option<&str>,
    ) -> Option<From> {
        let node = &self.drafts[draft];
        let chosen = match output {
            // Which outputs an op has may depend on its params.
            Some(output) if !node.sound => output.to_owned(),
            // Its own problem is told already.
            None if !node.sound && node.node.outputs.len() > 1 => return None,
            _ => self.choose(
                input,
                name,
                output,
                node.node.outputs.iter().map(|output| output.name.as_str()),
            )?,
        };
        Some(From {
            draft,
            output: chosen,
        })
    }

    /// The output that is named, or the only one.
    fn choose<'n>(
        &mut self,
        input: &InputRef,
        name: &str,
        output: Option<&str>,
        there: impl Iterator<Item = &'n str>,
    ) -> Option<String> {
        let there: Vec<_> = there.collect();
        let list = || suggest::list(there.iter().copied());
        let problem = match (output, there.as_slice()) {
            (Some(output), _) if there.contains(&output) => return Some(output.to_owned()),
            (Some(output), _) => {
                let problem =
                    Diagnostic::new(input.span, format!("`{name}` has no output `{output}`"))
                        .guess(suggest::closest(output, there.iter().copied()));
                problem.help(format!("its outputs are {}", list()))
            }
            (None, [only]) => return Some((*only).to_owned()),
            (None, []) => Diagnostic::new(input.span, format!("`{name}` has no outputs"))
                .help("wire another stage"),
            (None, [first, ..]) => {
                let problem = Diagnostic::new(
                    input.span,
                    format!("`{name}` has several outputs: {}", list()),
                );
                problem.help(format!("name one, such as `{name}.{first}`"))
            }
        };
        self.problems.push(problem);
        None
    }

    fn kind_fits(&mut self, owner: &str, input: &InputRef, port: &Port, from: &From) -> bool {
        let node = &self.drafts[from.draft];
        let (Some(wanted), Some(output)) = (port.kind, node.node.output(&from.output)) else {
            return true;
        };
        if output.kind == wanted || !node.sound {
            return true;
        }
        let word = |kind| match kind {
            ArtifactKind::Table => "a table",
            ArtifactKind::Files => "files",
        };
        let message = format!(
            "the input `{}` of {owner} takes {}, `{}` gives {}",
            input.port,
            word(wanted),
            input.target,
            word(output.kind)
        );
        let others: Vec<_> = node
            .node
            .outputs
            .iter()
            .filter(|output| output.kind == wanted)
            .map(|output| output.name.as_str())
            .collect();
        let help = if others.is_empty() {
            "wire another stage".to_owned()
        } else {
            format!(
                "its outputs of the right kind are {}",
                suggest::list(others)
            )
        };
        self.problems
            .push(Diagnostic::new(input.span, message).help(help));
        false
    }
}

/// A declared output of a stage as a reference to the step behind it.
fn reference(output: &StageOutput) -> InputRef {
    InputRef {
        port: output.name.clone(),
        port_span: output.span,
        target: output.from.clone(),
        span: output.span,
    }
}

fn split(target: &str) -> (&str, Option<&str>) {
    match target.split_once('.') {
        Some((name, output)) => (name, Some(output)),
        None => (target, None),
    }
}
