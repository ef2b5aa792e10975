//! Checks the params of a call against an interface and fills in the defaults.

use std::collections::BTreeMap;

use serde_json::Number;

use super::diagnostic::{Diagnostic, Problems};
use super::fields::{expected, read_env};
use super::interface::{Param, ParamKind};
use super::source::Span;
use super::yaml::{Entry, Kind, Yaml};
use super::{scalar, suggest};

pub struct Checker<'a> {
    problems: &'a mut Problems,
}

impl<'a> Checker<'a> {
    pub fn new(problems: &'a mut Problems) -> Self {
        Self { problems }
    }

    /// The params with every default filled in, sorted by name; an optional one that is not given is absent.
    ///
    /// `owner` is how messages call what the params belong to; `place` is pointed at where one is missing.
    pub fn params(
        &mut self,
        owner: &str,
        params: &BTreeMap<String, Param>,
        given: &[Entry],
        place: Span,
    ) -> Vec<Entry> {
        for entry in given
            .iter()
            .filter(|entry| !params.contains_key(&entry.key))
        {
            let names = || params.keys().map(String::as_str);
            let help = if params.is_empty() {
                format!("{owner} has no params")
            } else {
                format!("{owner} has {}", suggest::list(names()))
            };
            let problem = Diagnostic::new(
                entry.key_span,
                format!("{owner} has no param `{}`", entry.key),
            );
            self.problems.push(
                problem
                    .guess(suggest::closest(&entry.key, names()))
                    .help(help),
            );
        }
        params
            .iter()
            .filter_map(|(name, param)| self.param(owner, name, param, given, place))
            .collect()
    }

    fn param(
        &mut self,
        owner: &str,
        name: &str,
        param: &Param,
        given: &[Entry],
        place: Span,
    ) -> Option<Entry> {
        let given = given.iter().find(|entry| entry.key == *name);
        let entry = |key_span, value| Entry {
            key: name.to_owned(),
            key_span,
            value,
        };
        match (given.filter(|entry| !entry.value.is_null()), &param.default) {
            (Some(given), default) => {
                let mut value = given.value.clone();
                if let (ParamKind::Record(_), Some(default), Kind::Map(fields)) =
                    (&param.kind, default, &mut value.kind)
                {
                    merge_defaults(fields, &Yaml::from_json(default, given.key_span));
                }
                Some(entry(
                    given.key_span,
                    self.value(name, &param.kind, &value)?,
                ))
            }
            // An explicit nothing turns an optional param off.
            (None, _) if param.optional && given.is_some() => None,
            (None, Some(default)) => {
                let value = self.value(name, &param.kind, &Yaml::from_json(default, place))?;
                Some(entry(place, value))
            }
            (None, None) if param.optional => None,
            (None, None) => {
                if let ParamKind::Record(fields) = &param.kind
                    && fields
                        .values()
                        .all(|field| field.optional || field.default.is_some())
                {
                    return Some(entry(
                        place,
                        self.value(name, &param.kind, &Yaml::new(Kind::Map(Vec::new()), place))?,
                    ));
                }
                let doc = if param.doc.is_empty() {
                    String::new()
                } else {
                    format!(" ({})", param.doc.trim_end_matches('.'))
                };
                let place = given.map_or(place, |entry| entry.key_span);
                let problem =
                    Diagnostic::new(place, format!("{owner} needs the param `{name}`{doc}"));
                self.problems.push(problem.help(format!(
                    "add `{name}: …` under `with:`; it takes {}",
                    describe(&param.kind)
                )));
                None
            }
        }
    }

    /// A value of the right type, numbers brought to one form; `None` (and problems) otherwise.
    pub fn value(&mut self, name: &str, kind: &ParamKind, yaml: &Yaml) -> Option<Yaml> {
        let read = match kind {
            ParamKind::Text
            | ParamKind::Choice(_)
            | ParamKind::Model
            | ParamKind::File
            | ParamKind::Path => yaml.clone(),
            _ => read_env(yaml),
        };
        let checked = match (kind, read.kind) {
            (ParamKind::Any, kind) => kind,
            (ParamKind::Bool, kind @ Kind::Bool(_)) => kind,
            (ParamKind::Integer { min, max }, Kind::Number(number)) if number.is_i64() => {
                let value = number.as_i64().unwrap_or_default();
                if min.is_some_and(|min| value < min) || max.is_some_and(|max| value > max) {
                    return self.out_of_range(name, kind, yaml);
                }
                Kind::Number(number)
            }
            // Seeds use all 64 bits.
            (ParamKind::Integer { max: None, .. }, Kind::Number(number)) if number.is_u64() => {
                Kind::Number(number)
            }
            (ParamKind::Number { min, max }, Kind::Number(number)) => {
                let value = number.as_f64().unwrap_or_default();
                if min.is_some_and(|min| value < min) || max.is_some_and(|max| value > max) {
                    return self.out_of_range(name, kind, yaml);
                }
                // `1` and `1.0` are the same number, so they must give the same fingerprint.
                Kind::Number(Number::from_f64(value).unwrap_or(number))
            }
            (
                ParamKind::Text | ParamKind::File | ParamKind::Path | ParamKind::Model,
                kind @ Kind::Text(_),
            ) => kind,
            (ParamKind::Choice(choices), Kind::Text(text)) => {
                if !choices.contains(&text) {
                    let names = || choices.iter().map(String::as_str);
                    let problem =
                        Diagnostic::new(yaml.span, format!("`{name}` cannot be `{text}`"))
                            .guess(suggest::closest(&text, names()));
                    self.problems
                        .push(problem.help(format!("choose one of {}", suggest::list(names()))));
                    return None;
                }
                Kind::Text(text)
            }
            (ParamKind::List(item), Kind::List(items)) => {
                let checked: Vec<_> = items
                    .iter()
                    .map(|value| self.value(name, item, value))
                    .collect();
                Kind::List(checked.into_iter().collect::<Option<_>>()?)
            }
            (ParamKind::Map(item), Kind::Map(entries)) => {
                let checked: Vec<_> = entries
                    .into_iter()
                    .map(|entry| {
                        self.value(&entry.key.clone(), item, &entry.value)
                            .map(|value| Entry { value, ..entry })
                    })
                    .collect();
                Kind::Map(checked.into_iter().collect::<Option<_>>()?)
            }
            (ParamKind::Record(fields), Kind::Map(entries)) => {
                let before = self.problems.len();
                let checked = self.params(&format!("`{name}`"), fields, &entries, yaml.span);
                if self.problems.len() > before {
                    return None;
                }
                Kind::Map(checked)
            }
            _ => {
                let problem = expected(yaml, name, &describe(kind));
                self.problems.push(match (kind, &yaml.kind) {
                    (ParamKind::Text | ParamKind::Choice(_), Kind::Number(_) | Kind::Bool(_)) => {
                        problem.help("put quotes around it to make it text")
                    }
                    (ParamKind::List(_), _) => problem.help("write `[a, b]`"),
                    (
                        ParamKind::Integer { .. } | ParamKind::Number { .. } | ParamKind::Bool,
                        Kind::Text(text),
                    ) if !matches!(scalar::resolve(text), Kind::Text(_)) => {
                        problem.help("write it without quotes")
                    }
                    _ => problem,
                });
                return None;
            }
        };
        Some(Yaml {
            kind: checked,
            ..yaml.clone()
        })
    }

    fn out_of_range(&mut self, name: &str, kind: &ParamKind, yaml: &Yaml) -> Option<Yaml> {
        self.problems.push(expected(yaml, name, &describe(kind)));
        None
    }
}

/// Adds what a record's own default gives and the user did not.
fn merge_defaults(fields: &mut Vec<Entry>, default: &Yaml) {
    let Kind::Map(defaults) = &default.kind else {
        return;
    };
    for entry in defaults {
        if !fields.iter().any(|field| field.key == entry.key) {
            fields.push(entry.clone());
        }
    }
}

/// What a param takes, for messages.
pub fn describe(kind: &ParamKind) -> String {
    let range = |min: Option<String>, max: Option<String>| match (min, max) {
        (Some(min), Some(max)) => format!(" from {min} to {max}"),
        (Some(min), None) => format!(" of at least {min}"),
        (None, Some(max)) => format!(" of at most {max}"),
        (None, None) => String::new(),
    };
    match kind {
        ParamKind::Bool => "`true` or `false`".to_owned(),
        ParamKind::Integer { min, max } => format!(
            "a whole number{}",
            range(
                min.map(|min| min.to_string()),
                max.map(|max| max.to_string())
            )
        ),
        ParamKind::Number { min, max } => format!(
            "a number{}",
            range(
                min.map(|min| min.to_string()),
                max.map(|max| max.to_string())
            )
        ),
        ParamKind::Text => "a text".to_owned(),
        ParamKind::Choice(choices) => format!(
            "one of {}",
            suggest::list(choices.iter().map(String::as_str))
        ),
        ParamKind::Model => "the name of a model under `models:`".to_owned(),
        ParamKind::File => "the name of a text file".to_owned(),
        ParamKind::Path => "a path".to_owned(),
        ParamKind::List(_) => "a list".to_owned(),
        ParamKind::Record(_) | ParamKind::Map(_) => "a mapping".to_owned(),
        ParamKind::Any => "any value".to_owned(),
    }
}
