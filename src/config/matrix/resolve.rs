//! From what is written to variants: the product of the lists, less what is excluded, and what is included.

use super::written::{Written, WrittenAxis, can_vary};
use super::{LIMIT, Matrix};
use crate::config::diagnostic::{Diagnostic, Problems};
use crate::config::fields::{self, expected};
use crate::config::overrides;
use crate::config::pipeline::Parts;
use crate::config::source::Span;
use crate::config::suggest;
use crate::config::yaml::{Entry, Kind, Yaml};

impl Written {
    /// The variants of `pipeline`, of which `parts` were read; `None` where it has no matrix. What is wrong is in `problems`, and
    /// what is right is kept, so that the variants are checked too.
    pub fn resolve(
        mut self,
        pipeline: &Yaml,
        parts: &Parts,
        problems: &mut Problems,
    ) -> Option<Matrix> {
        if self.axes.is_empty() {
            self.axes = self.axes_of_include(pipeline, problems);
        }
        if self.axes.is_empty() {
            return None;
        }
        let before = problems.len();
        let mut values: Vec<Vec<Yaml>> = Vec::new();
        self.axes.retain(|axis| {
            let list = list(axis, problems);
            let is_sound = !list.is_empty() || !axis.is_listed;
            if is_sound {
                values.push(list);
            }
            is_sound
        });
        let mut choices = self.product(&values, problems);
        self.exclude(&values, &mut choices, problems);
        self.include(&mut values, &mut choices, problems);
        self.check_choices(&choices, before, problems);
        choices.truncate(if problems.len() > before {
            1
        } else {
            usize::MAX
        });
        if choices.is_empty() {
            return None;
        }
        Some(self.matrix(values, choices, pipeline, parts, problems))
    }

    /// Without lists, `include` says which keys vary.
    fn axes_of_include(&self, pipeline: &Yaml, problems: &mut Problems) -> Vec<WrittenAxis> {
        let Some(Kind::Map(entries)) = self.include.first().map(|first| &first.kind) else {
            return Vec::new();
        };
        let pinned = |key: &str| self.pinned.iter().any(|(known, _)| known == key);
        overrides::all(entries)
            .into_iter()
            .filter(|one| !pinned(&one.key()) && can_vary(pipeline, one, problems))
            .map(|one| WrittenAxis::new(&one, false))
            .collect()
    }

    fn limit(&self, problems: &mut Problems) -> usize {
        let Some(yaml) = &self.limit else {
            return LIMIT;
        };
        match &fields::read_env(yaml).kind {
            Kind::Number(number) if number.as_u64().is_some_and(|limit| limit > 0) => {
                number.as_u64().unwrap_or_default() as usize
            }
            _ => {
                problems.push(expected(yaml, "limit", "a number of 1 or more"));
                LIMIT
            }
        }
    }

    fn product(&self, values: &[Vec<Yaml>], problems: &mut Problems) -> Vec<Vec<usize>> {
        // Axes that only `include` speaks of have no product.
        if values.iter().any(Vec::is_empty) {
            return Vec::new();
        }
        let limit = self.limit(problems);
        let count = values
            .iter()
            .try_fold(1_usize, |count, list| count.checked_mul(list.len()));
        if count.is_none_or(|count| count > limit) {
            let count = count.map_or_else(|| "too many".to_owned(), |count| count.to_string());
            let message = format!("the matrix has {count} variants, more than {limit}");
            let span = self.axes[0].value.span;
            problems.push(
                Diagnostic::new(span, message)
                    .help("list fewer values, or raise `limit:` of the matrix if you mean it"),
            );
            return vec![vec![0; values.len()]];
        }
        let mut choices: Vec<Vec<usize>> = vec![Vec::new()];
        for list in values {
            choices = choices
                .iter()
                .flat_map(|choice| {
                    (0..list.len()).map(|value| [choice.as_slice(), &[value]].concat())
                })
                .collect();
        }
        choices
    }

    /// Takes out every variant that has all values of an `exclude`.
    fn exclude(
        &self,
        values: &[Vec<Yaml>],
        choices: &mut Vec<Vec<usize>>,
        problems: &mut Problems,
    ) {
        for excluded in &self.exclude {
            let Some(wanted) = self.placed(excluded, "exclude", problems) else {
                continue;
            };
            let is_meant = |choice: &Vec<usize>| {
                let mut wanted = wanted.iter();
                wanted.all(|(axis, value)| is_same(&values[*axis][choice[*axis]], value))
            };
            let before = choices.len();
            choices.retain(|choice| !is_meant(choice));
            if choices.len() == before {
                problems.push(
                    Diagnostic::new(excluded.span, "this excludes no variant")
                        .help("name values that are listed, each under its own key"),
                );
            }
        }
    }

    /// Adds a variant for every `include`; its values need not be listed.
    fn include(
        &self,
        values: &mut [Vec<Yaml>],
        choices: &mut Vec<Vec<usize>>,
        problems: &mut Problems,
    ) {
        for included in &self.include {
            let Some(given) = self.placed(included, "include", problems) else {
                continue;
            };
            let mut choice = Vec::with_capacity(self.axes.len());
            for (axis, list) in values.iter_mut().enumerate() {
                let Some((_, value)) = given.iter().find(|(known, _)| *known == axis) else {
                    let key = &self.axes[axis].key;
                    let message = format!("this variant has no value for `{key}`");
                    problems.push(
                        Diagnostic::new(included.span, message)
                            .help(format!("add `{key}: …`; an `include` is a whole variant")),
                    );
                    continue;
                };
                let known = list.iter().position(|known| is_same(known, value));
                choice.push(known.unwrap_or_else(|| {
                    list.push((*value).clone());
                    list.len() - 1
                }));
            }
            if choice.len() < self.axes.len() {
                continue;
            }
            if choices.contains(&choice) {
                problems.push(
                    Diagnostic::new(included.span, "this variant is there already")
                        .help("remove it"),
                );
                continue;
            }
            choices.push(choice);
        }
    }

    fn check_choices(&self, choices: &[Vec<usize>], before: usize, problems: &mut Problems) {
        let place = self
            .axes
            .first()
            .map_or(Span::start_of(0), |axis| axis.value.span);
        if choices.is_empty() && problems.len() == before && !self.axes.is_empty() {
            problems
                .push(Diagnostic::new(place, "`exclude` leaves no variant").help("exclude fewer"));
        }
        let limit = self.limit(&mut Problems::new());
        if choices.len() > limit {
            let message = format!(
                "the matrix has {} variants, more than {limit}",
                choices.len()
            );
            problems.push(
                Diagnostic::new(place, message)
                    .help("name fewer, or raise `limit:` of the matrix if you mean it"),
            );
        }
    }

    /// The entries of an `include` or `exclude` by axis; `None` where one is no axis.
    fn placed<'a>(
        &self,
        yaml: &'a Yaml,
        what: &str,
        problems: &mut Problems,
    ) -> Option<Vec<(usize, &'a Yaml)>> {
        let Kind::Map(entries) = &yaml.kind else {
            return None;
        };
        let mut found = Vec::new();
        self.flatten(String::new(), entries, &mut found);
        let mut placed = Vec::new();
        for (key, span, value) in found {
            let keys = || self.axes.iter().map(|axis| axis.key.as_str());
            if let Some(axis) = keys().position(|known| known == key) {
                placed.push((axis, value));
            } else if !self.pinned.iter().any(|(pinned, _)| *pinned == key) {
                let message = format!("`{key}` of `{what}` is no key of the matrix");
                problems.push(
                    Diagnostic::new(span, message)
                        .guess(suggest::closest(&key, keys()))
                        .help(format!("the keys are {}", suggest::list(keys()))),
                );
                return None;
            }
        }
        Some(placed)
    }

    /// Follows nested mappings down to keys of axes.
    fn flatten<'a>(
        &self,
        prefix: String,
        entries: &'a [Entry],
        found: &mut Vec<(String, Span, &'a Yaml)>,
    ) {
        for entry in entries {
            let key = format!("{prefix}{}", entry.key);
            match &entry.value.kind {
                Kind::Map(inner) if !self.axes.iter().any(|axis| axis.key == key) => {
                    self.flatten(format!("{key}."), inner, found);
                }
                _ => found.push((key, entry.key_span, &entry.value)),
            }
        }
    }
}

/// The values of an axis; none where it has no list of its own.
fn list(axis: &WrittenAxis, problems: &mut Problems) -> Vec<Yaml> {
    if !axis.is_listed {
        return Vec::new();
    }
    let items = match &axis.value.kind {
        Kind::List(items) => items,
        _ => {
            problems.push(
                expected(&axis.value, &axis.key, "a list of values in `matrix`")
                    .help(format!("write `{}: [a, b]`", axis.key)),
            );
            return Vec::new();
        }
    };
    if items.is_empty() {
        let message = format!("`{}` of the matrix lists no value", axis.key);
        problems.push(
            Diagnostic::new(axis.value.span, message).help("list at least one, or remove the key"),
        );
    }
    let mut distinct: Vec<Yaml> = Vec::with_capacity(items.len());
    for item in items {
        if distinct.iter().any(|known| is_same(known, item)) {
            let message = format!("`{}` lists {} twice", axis.key, item.describe());
            problems.push(
                Diagnostic::new(item.span, message)
                    .label("again here")
                    .help("remove one of them"),
            );
        } else {
            distinct.push(item.clone());
        }
    }
    distinct
}

/// Whether two values mean the same: `1` and `1.0` do.
fn is_same(a: &Yaml, b: &Yaml) -> bool {
    match (&a.kind, &b.kind) {
        (Kind::Number(a), Kind::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        _ => a.to_json() == b.to_json(),
    }
}
