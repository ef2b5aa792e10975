//! A matrix as it is written: in the pipeline, in the profile over it, on the command line.

use crate::config::diagnostic::{Diagnostic, Problems};
use crate::config::environment::{Environment, substitute};
use crate::config::overrides::{self, Override};
use crate::config::source::Span;
use crate::config::yaml::{Entry, Kind, Yaml};
use crate::config::{fields, suggest};

/// Keys of `matrix:` that are no axes.
const OTHER: [&str; 3] = ["include", "exclude", "limit"];

/// Layers laid over each other so far.
#[derive(Debug, Default)]
pub struct Written {
    pub(super) axes: Vec<WrittenAxis>,
    pub(super) include: Vec<Yaml>,
    pub(super) exclude: Vec<Yaml>,
    pub(super) limit: Option<Yaml>,
    /// Axes that a later layer gives one value: the key and who says so.
    pub(super) pinned: Vec<(String, String)>,
}

#[derive(Debug)]
pub(super) struct WrittenAxis {
    pub path: Vec<(String, Span)>,
    pub key: String,
    pub value: Yaml,
    /// False where only `include` speaks of it.
    pub is_listed: bool,
}

impl WrittenAxis {
    pub fn new(one: &Override, is_listed: bool) -> Self {
        let part = |(part, span): &(&str, Span)| ((*part).to_owned(), *span);
        Self {
            path: one.path.iter().map(part).collect(),
            key: one.key(),
            value: one.value.clone(),
            is_listed,
        }
    }
}

impl Written {
    /// Lays a `matrix:` over what is there: an axis replaces one of the same key, `null` takes all of it away.
    pub fn lay_over(&mut self, entry: &Entry, pipeline: &Yaml, problems: &mut Problems) {
        if entry.value.is_null() {
            *self = Self::default();
            return;
        }
        let Some(entries) = fields::entries(&entry.value, "`matrix`", problems) else {
            return;
        };
        for entry in entries {
            match entry.key.as_str() {
                "include" => self.include = mappings(entry, problems),
                "exclude" => self.exclude = mappings(entry, problems),
                "limit" => self.limit = Some(entry.value.clone()),
                _ => self.add_axes(entry, pipeline, problems),
            }
        }
    }

    /// Adds what one entry names: a dotted key, or a mapping of such.
    pub fn add_axes(&mut self, entry: &Entry, pipeline: &Yaml, problems: &mut Problems) {
        for one in overrides::all(std::slice::from_ref(entry)) {
            if !can_vary(pipeline, &one, problems) {
                continue;
            }
            let axis = WrittenAxis::new(&one, true);
            self.pinned.retain(|(key, _)| *key != axis.key);
            match self.axes.iter_mut().find(|known| known.key == axis.key) {
                Some(known) => *known = axis,
                None => self.axes.push(axis),
            }
        }
    }

    /// Notes that a layer sets values: an axis of the same key has that value only.
    pub fn pin(&mut self, entries: &[Entry], by: &str, problems: &mut Problems) {
        for one in overrides::all(entries) {
            let key = one.key();
            if let Some(place) = self.axes.iter().position(|axis| axis.key == key) {
                self.axes.remove(place);
                self.pinned.push((key, by.to_owned()));
                continue;
            }
            let around = |axis: &&WrittenAxis| {
                key.strip_prefix(axis.key.as_str())
                    .is_some_and(|rest| rest.starts_with('.'))
            };
            if let Some(axis) = self.axes.iter().find(around) {
                let span = one.path.last().map(|part| part.1);
                let message = format!(
                    "`{key}` is a part of `{}`, which the matrix varies",
                    axis.key
                );
                problems.push(Diagnostic {
                    span,
                    ..Diagnostic::without_place(message)
                        .help("set the whole of it, which leaves one variant, or vary the part")
                });
            }
        }
    }

    /// Puts environment variables in, as everywhere in a pipeline.
    pub fn substitute(&mut self, environment: Environment, problems: &mut Problems) {
        let values = self.axes.iter_mut().map(|axis| &mut axis.value);
        let rest = self.include.iter_mut().chain(&mut self.exclude);
        for value in values.chain(rest).chain(&mut self.limit) {
            substitute(value, environment, problems);
        }
    }

    /// One line for each key that has one value only, though it is listed.
    pub fn remarks(&self) -> Vec<String> {
        let remark = |(key, by): &(String, String)| {
            format!("matrix: {by} sets `{key}`, so it does not vary")
        };
        self.pinned.iter().map(remark).collect()
    }
}

/// Whether variants may differ in this; says why not.
pub(super) fn can_vary(pipeline: &Yaml, one: &Override, problems: &mut Problems) -> bool {
    let (first, span) = one.path[0];
    let problem = match first {
        "cache" | "tracking" | "executor" => {
            let message = format!("`{first}` is the same for all variants, it cannot vary");
            Diagnostic::new(span, message).help("write it outside of `matrix`")
        }
        "seed" if one.path.len() > 1 => {
            Diagnostic::new(span, "`seed` is a number").help("write `seed: [1, 2, 3]`")
        }
        "models" => {
            let models = match pipeline.entry("models").map(|entry| &entry.value.kind) {
                Some(Kind::Map(models)) => models.as_slice(),
                _ => &[],
            };
            let names = || models.iter().map(|model| model.key.as_str());
            let name = one.path.get(1).map_or("", |part| part.0);
            if names().any(|known| known == name) {
                return true;
            }
            let known = if models.is_empty() {
                "there are no `models:` yet".to_owned()
            } else {
                format!("the models are {}", suggest::list(names()))
            };
            Diagnostic::new(span, format!("there is no model `{name}` to vary"))
                .guess(suggest::closest(name, names()))
                .help(known)
        }
        "seed" => return true,
        _ if OTHER
            .iter()
            .any(|key| suggest::closest(first, [*key]).is_some())
            && one.path.len() == 1 =>
        {
            Diagnostic::new(span, format!("`{first}` is no key of `matrix`"))
                .guess(suggest::closest(first, OTHER))
                .help(
                    "write `<stage>.with.<param>: [value, value]`, `include`, `exclude` or `limit`",
                )
        }
        _ => return overrides::target_exists(pipeline, one, problems),
    };
    problems.push(problem);
    false
}

/// A list of mappings.
fn mappings(entry: &Entry, problems: &mut Problems) -> Vec<Yaml> {
    let is_mapping = |item: &Yaml| matches!(item.kind, Kind::Map(_));
    match &entry.value.kind {
        Kind::Null => Vec::new(),
        Kind::List(items) if items.iter().all(is_mapping) => items.clone(),
        _ => {
            problems.push(
                fields::expected(&entry.value, &entry.key, "a list of mappings")
                    .help("for example `- { train.with.lora.r: 8, seed: 1 }`"),
            );
            Vec::new()
        }
    }
}
