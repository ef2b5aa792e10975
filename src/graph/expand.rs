//! Expands the stages of a pipeline into drafts of nodes: finds ops and stage definitions, checks params, puts `$name`s in.

use std::collections::HashMap;
use std::rc::Rc;

use crate::config::{
    Call, Checker, Diagnostic, Entry, InputRef, Interface, Kind, PipelineSpec, Port, Problems,
    Sources, Span, StageFolder, StageSpec, Yaml, suggest, to_object,
};
use crate::digest::derive_seed;
use crate::graph::draft::{Bound, Draft, Stage};
use crate::graph::instances::Instances;
use crate::graph::params::{Finder, Home};
use crate::graph::{Node, Output, Resources};
use crate::ops::Catalog;

pub(super) struct Expander<'a> {
    pub spec: &'a PipelineSpec,
    instances: &'a Instances<'a>,
    pub catalog: &'a Catalog,
    pub sources: Sources,
    pub problems: Problems,
    pub drafts: Vec<Draft>,
    pub stages: Vec<Stage<'a>>,
    finder: Finder<'a>,
    interfaces: HashMap<String, Rc<Interface>>,
    definitions: HashMap<String, Option<Rc<StageSpec>>>,
    /// The seed of the variants that the stage at hand belongs to.
    seed: u64,
}

/// What `$name` can stand for in a stage.
struct Scope {
    /// `None` where an optional param is not given.
    values: HashMap<String, Option<Yaml>>,
    /// The place that defaults got: the call.
    place: Span,
}

impl<'a> Expander<'a> {
    pub(super) fn new(
        spec: &'a PipelineSpec,
        instances: &'a Instances<'a>,
        catalog: &'a Catalog,
        check_data: bool,
    ) -> Self {
        Self {
            spec,
            instances,
            seed: spec.seed,
            catalog,
            sources: spec.sources.clone(),
            problems: spec.problems.clone(),
            drafts: Vec::new(),
            stages: Vec::new(),
            finder: Finder::new(spec, check_data),
            interfaces: HashMap::new(),
            definitions: HashMap::new(),
        }
    }

    pub(super) fn expand(&mut self) {
        for instance in &self.instances.list {
            let call = instance.call;
            self.seed = instance.seed;
            self.finder.models = instance.models;
            let stage = if self.catalog.get(&call.uses).is_some() {
                self.bare_op(call)
            } else {
                self.stage(call)
            };
            self.stages.push(stage);
        }
    }

    /// A stage that is one op call.
    fn bare_op(&mut self, call: &'a Call) -> Stage<'a> {
        let draft = self.draft(call, call.name.clone(), call, None);
        Stage {
            call,
            definition: None,
            steps: vec![(call.name.clone(), draft)],
            bound: Vec::new(),
            exports: Vec::new(),
            broken: draft.is_none(),
        }
    }

    fn stage(&mut self, call: &'a Call) -> Stage<'a> {
        let broken = Stage {
            call,
            definition: None,
            steps: Vec::new(),
            bound: Vec::new(),
            exports: Vec::new(),
            broken: true,
        };
        let Some(definition) = self.definition(call) else {
            return broken;
        };
        let owner = format!("the stage `{}`", definition.name);
        let before = self.problems.len();
        let params = Checker::new(&mut self.problems).params(
            &owner,
            &definition.interface.params,
            &call.with,
            call.span,
        );
        let sound = self.problems.len() == before;
        let bound = self.bind(call, &owner, &definition.interface);
        let mut values: HashMap<_, _> = definition
            .interface
            .params
            .keys()
            .map(|name| (name.clone(), None))
            .collect();
        values.extend(
            params
                .into_iter()
                .map(|entry| (entry.key, Some(entry.value))),
        );
        // `$seed` is the pipeline's, unless the stage has a param of that name and the call gives it.
        values
            .entry("seed".to_owned())
            .or_default()
            .get_or_insert_with(|| Yaml::new(Kind::Number(self.seed.into()), call.span));
        let scope = Scope {
            values,
            place: call.span,
        };
        let mut steps = Vec::new();
        for step in &definition.steps {
            // With wrong params of the stage, those of the steps would be wrong again.
            let draft = if sound {
                let resolved = Call {
                    with: self.put_in(&step.with, &scope, &definition),
                    ..step.clone()
                };
                self.draft(
                    call,
                    format!("{}.{}", call.name, step.name),
                    &resolved,
                    Some(&definition),
                )
            } else {
                self.check_op(step);
                None
            };
            steps.push((step.name.clone(), draft));
        }
        Stage {
            call,
            definition: Some(definition),
            steps,
            bound,
            exports: Vec::new(),
            broken: false,
        }
    }

    /// The definition a call uses, read once.
    fn definition(&mut self, call: &Call) -> Option<Rc<StageSpec>> {
        if call.uses.is_empty() {
            return None;
        }
        if let Some(known) = self.definitions.get(&call.uses).cloned() {
            if known.is_none() && StageFolder::find(&self.spec.root, &call.uses).is_none() {
                self.unknown_use(call);
            }
            return known;
        }
        let definition = match StageFolder::find(&self.spec.root, &call.uses) {
            Some(folder) => {
                StageSpec::load(folder, &call.uses, &mut self.sources, &mut self.problems)
                    .map(Rc::new)
            }
            None => {
                self.unknown_use(call);
                None
            }
        };
        self.definitions
            .insert(call.uses.clone(), definition.clone());
        definition
    }

    fn unknown_use(&mut self, call: &Call) {
        let stages = StageFolder::names(&self.spec.root);
        let ops: Vec<&str> = self.catalog.names().collect();
        let names = ops.iter().copied().chain(stages.iter().map(String::as_str));

        let folders = if stages.is_empty() {
            "there are none".to_owned()
        } else {
            suggest::list(stages.iter().map(String::as_str))
        };
        let problem = Diagnostic::new(
            call.uses_span,
            format!("there is no op or stage `{}`", call.uses),
        )
        .guess(suggest::closest(&call.uses, names));
        let ops = suggest::list(ops.iter().copied());
        self.problems.push(problem.help(format!(
            "ops: {ops}; stages (folders of `stages/` with a `stage.yaml`): {folders}"
        )));
    }

    /// Lays the call's inputs beside those the stage declares.
    fn bind(&mut self, call: &Call, owner: &str, interface: &Interface) -> Vec<Bound> {
        check_ports(owner, call, interface, &mut self.problems);
        let bound = |input: &InputRef| {
            let port = interface.inputs.get(&input.port)?.clone();
            Some(Bound {
                input: input.clone(),
                port,
                from: None,
                columns_fit: None,
            })
        };
        call.inputs.iter().filter_map(bound).collect()
    }

    /// Reports a step's op where there is none of that name.
    fn check_op(&mut self, call: &Call) -> bool {
        let there = self.catalog.get(&call.uses).is_some();
        if !there && !call.uses.is_empty() {
            let problem =
                Diagnostic::new(call.uses_span, format!("there is no op `{}`", call.uses))
                    .guess(suggest::closest(&call.uses, self.catalog.names()));
            self.problems.push(problem.help(format!(
                "the ops are {}",
                suggest::list(self.catalog.names())
            )));
        }
        there
    }

    /// Drafts the node of one op call; `None` where there is no such op.
    fn draft(
        &mut self,
        stage: &Call,
        name: String,
        call: &Call,
        definition: Option<&StageSpec>,
    ) -> Option<usize> {
        if !self.check_op(call) {
            return None;
        }
        let op = self.catalog.get(&call.uses)?;
        let interface = self
            .interfaces
            .entry(call.uses.clone())
            .or_insert_with(|| Rc::new(op.interface()))
            .clone();
        let owner = format!("the op `{}`", call.uses);
        let before = self.problems.len();
        let with = Checker::new(&mut self.problems).params(
            &owner,
            &interface.params,
            &call.with,
            call.span,
        );
        let home: Home = definition.map(|definition| (&definition.folder, definition.source));
        let named = self
            .finder
            .find(&interface.params, &with, home, &mut self.problems);
        let sound = self.problems.len() == before;
        check_ports(&owner, call, &interface, &mut self.problems);
        let mut node = Node {
            seed: 0,
            name,
            stage: stage.name.clone(),
            op: call.uses.clone(),
            op_version: op.version(),
            params: to_object(&with),
            unhashed: named.unhashed,
            files: named.files,
            paths: named.paths,
            models: named.models,
            inputs: Vec::new(),
            outputs: Vec::new(),
            resources: Resources::default(),
            job: stage.job.clone(),
        };
        if op.seeded(&node) {
            node.seed = derive_seed(self.seed, &node.name);
        }
        let outputs = if sound {
            op.outputs(&node)
        } else {
            interface.outputs.keys().cloned().collect()
        };
        let output = |name: String| {
            let port = interface.outputs.get(&name);
            let kind = port
                .and_then(|port| port.kind)
                .unwrap_or(crate::config::ArtifactKind::Table);
            Output {
                name,
                kind,
                columns: None,
            }
        };
        node.outputs = outputs.into_iter().map(output).collect();
        if sound {
            let asked = op.resources(&node);
            node.resources = Resources {
                cpu: stage.job.cpus.unwrap_or(asked.cpu),
                gpu: stage.job.gpus.unwrap_or(asked.gpu),
            };
        }
        self.drafts.push(Draft {
            node,
            interface,
            span: call.span,
            with,
            inputs: call.inputs.clone(),
            stage: self.stages.len(),
            sound,
        });
        Some(self.drafts.len() - 1)
    }

    /// Replaces every text that is exactly `$name` by the stage's param of that name.
    fn put_in(&mut self, with: &[Entry], scope: &Scope, definition: &StageSpec) -> Vec<Entry> {
        with.iter()
            .map(|entry| Entry {
                value: self.put_in_value(&entry.value, scope, definition),
                ..entry.clone()
            })
            .collect()
    }

    fn put_in_value(&mut self, yaml: &Yaml, scope: &Scope, definition: &StageSpec) -> Yaml {
        let kind = match &yaml.kind {
            Kind::Text(text) => match param_name(text) {
                Some(name) => return self.param_value(name, yaml.span, scope, definition),
                // `$$name` is the text `$name`.
                None if text.strip_prefix('$').and_then(param_name).is_some() => {
                    Kind::Text(text[1..].to_owned())
                }
                None => return yaml.clone(),
            },
            Kind::List(items) => Kind::List(
                items
                    .iter()
                    .map(|item| self.put_in_value(item, scope, definition))
                    .collect(),
            ),
            Kind::Map(entries) => Kind::Map(self.put_in(entries, scope, definition)),
            _ => return yaml.clone(),
        };
        Yaml {
            kind,
            ..yaml.clone()
        }
    }

    fn param_value(
        &mut self,
        name: &str,
        span: Span,
        scope: &Scope,
        definition: &StageSpec,
    ) -> Yaml {
        match scope.values.get(name) {
            // A default stands at the call; it was written in `stage.yaml`, where the step that uses it is.
            Some(Some(value)) => moved(value, scope.place, span),
            Some(None) => Yaml::new(Kind::Null, span),
            None => {
                let names = || {
                    definition
                        .interface
                        .params
                        .keys()
                        .map(String::as_str)
                        .chain(["seed"])
                };
                let problem = Diagnostic::new(
                    span,
                    format!("the stage `{}` has no param `{name}`", definition.name),
                )
                .guess(suggest::closest(name, names()));
                self.problems.push(problem.help(format!(
                    "declare it under `params:` (there are {}), or write `$${name}` for the text",
                    suggest::list(names())
                )));
                Yaml::new(Kind::Null, span)
            }
        }
    }
}

/// `yaml` with every part that stands at `from` put at `to`.
fn moved(yaml: &Yaml, from: Span, to: Span) -> Yaml {
    let kind = match &yaml.kind {
        Kind::List(items) => Kind::List(items.iter().map(|item| moved(item, from, to)).collect()),
        Kind::Map(entries) => {
            let entry = |entry: &Entry| Entry {
                value: moved(&entry.value, from, to),
                ..entry.clone()
            };
            Kind::Map(entries.iter().map(entry).collect())
        }
        other => other.clone(),
    };
    Yaml {
        kind,
        span: if yaml.span == from { to } else { yaml.span },
        ..*yaml
    }
}

/// `$name` as a whole.
fn param_name(text: &str) -> Option<&str> {
    let name = text.strip_prefix('$')?;
    let fine = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    (!name.is_empty() && name.bytes().all(fine) && !name.as_bytes()[0].is_ascii_digit())
        .then_some(name)
}

/// Reports inputs that the interface does not have and those it has but the call does not wire.
fn check_ports(owner: &str, call: &Call, interface: &Interface, problems: &mut Problems) {
    let names = || interface.inputs.keys().map(String::as_str);
    for input in &call.inputs {
        if interface.inputs.contains_key(&input.port) {
            continue;
        }
        if !interface.open_inputs {
            let help = if interface.inputs.is_empty() {
                format!("{owner} takes no inputs")
            } else {
                format!("{owner} takes {}", suggest::list(names()))
            };
            let problem = Diagnostic::new(
                input.port_span,
                format!("{owner} has no input `{}`", input.port),
            )
            .guess(suggest::closest(&input.port, names()));
            problems.push(problem.help(help));
        } else if !is_identifier(&input.port) {
            let problem = Diagnostic::new(
                input.port_span,
                format!("`{}` cannot be the name of an input", input.port),
            );
            problems.push(problem.help("use letters, digits and `_`, beginning with a letter: it becomes the name of a view or a variable"));
        }
    }
    let missing = |(name, port): &(&String, &Port)| {
        !port.optional && !call.inputs.iter().any(|input| input.port == **name)
    };
    for (name, port) in interface.inputs.iter().filter(missing) {
        let doc = if port.doc.is_empty() {
            String::new()
        } else {
            format!(" ({})", port.doc.trim_end_matches('.'))
        };
        let problem = Diagnostic::new(call.span, format!("{owner} needs the input `{name}`{doc}"));
        problems.push(problem.help(format!("add `inputs: {{ {name}: <stage> }}`")));
    }
}

fn is_identifier(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}
