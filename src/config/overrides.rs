//! Profiles and `--set`: values laid over a pipeline before it is read.
//!
//! Both speak of `models.<name>…`, `<stage>.with…`, `<stage>.inputs…`, `<stage>.resources…`, `seed`, `cache…`, `tracking…` and
//! `executor…`, with dotted or nested keys. A laid-over value keeps the place it was written at, so that a wrong one is shown in its profile.

use super::diagnostic::{Diagnostic, Problems};
use super::source::Span;
use super::suggest;
use super::yaml::{Entry, Kind, Yaml};

/// Keys of a pipeline that an override may begin with; anything else is the name of a stage.
const TOP: [&str; 5] = ["models", "seed", "cache", "tracking", "executor"];
/// Keys of a stage call that may be overridden.
const CALL: [&str; 3] = ["with", "inputs", "resources"];

/// A dotted entry as its path and value, one for each leaf mapping key that is written nested.
pub(super) struct Override<'a> {
    pub path: Vec<(&'a str, Span)>,
    pub value: &'a Yaml,
}

impl Override<'_> {
    /// The path as one dotted key.
    pub fn key(&self) -> String {
        let parts: Vec<&str> = self.path.iter().map(|part| part.0).collect();
        parts.join(".")
    }
}

/// Checks what a profile speaks of and, if `apply`, lays it over `pipeline`.
pub fn lay_over(pipeline: &mut Yaml, overrides: &[Entry], apply: bool, problems: &mut Problems) {
    for one in all(overrides) {
        if target_exists(pipeline, &one, problems) && apply {
            set(pipeline, &one.path, one.value);
        }
    }
}

/// Every override that entries hold.
pub(super) fn all(entries: &[Entry]) -> Vec<Override<'_>> {
    let mut found = Vec::new();
    for entry in entries {
        leaves(Vec::new(), entry, &mut found);
    }
    found
}

/// Follows nested mappings as deep as an override may name things: a stage's params one by one, a model as a whole.
fn leaves<'a>(mut path: Vec<(&'a str, Span)>, entry: &'a Entry, found: &mut Vec<Override<'a>>) {
    path.extend(entry.key.split('.').map(|part| (part, entry.key_span)));
    let whole = match path[0].0 {
        "models" => path.len() >= 2,
        _ => false,
    };
    match &entry.value.kind {
        Kind::Map(entries) if !whole && !entries.is_empty() => {
            for entry in entries {
                leaves(path.clone(), entry, found);
            }
        }
        _ => found.push(Override {
            path,
            value: &entry.value,
        }),
    }
}

/// Whether the pipeline has what is overridden; says what is wrong where it has not.
pub(super) fn target_exists(pipeline: &Yaml, one: &Override, problems: &mut Problems) -> bool {
    let (first, span) = one.path[0];
    if TOP.contains(&first) {
        return true;
    }
    let stages = match pipeline.entry("stages").map(|entry| &entry.value.kind) {
        Some(Kind::Map(entries)) => entries.as_slice(),
        _ => return false,
    };
    if !stages.iter().any(|stage| stage.key == first) {
        let names = || stages.iter().map(|stage| stage.key.as_str());
        let help = format!(
            "begin with a stage ({}) or with {}",
            suggest::list(names()),
            suggest::list(TOP)
        );
        let guess = suggest::closest(first, names().chain(TOP));
        problems.push(
            Diagnostic::new(span, format!("there is no stage `{first}` to override"))
                .guess(guess)
                .help(help),
        );
        return false;
    }
    let second = one.path.get(1).map_or("", |part| part.0);
    if !CALL.contains(&second) {
        let message = if second.is_empty() {
            format!(
                "an override of the stage `{first}` is a mapping, this is {}",
                one.value.describe()
            )
        } else {
            format!("`{second}` of the stage `{first}` cannot be overridden")
        };
        let help = format!(
            "write `{first}.with.<param>`, `{first}.inputs.<input>` or `{first}.resources.<resource>`"
        );
        problems.push(
            Diagnostic::new(span, message)
                .guess(suggest::closest(second, CALL))
                .help(help),
        );
        return false;
    }
    true
}

/// Replaces or adds the value at a path; mappings in between are made where they are missing.
pub(super) fn set(pipeline: &mut Yaml, path: &[(&str, Span)], value: &Yaml) {
    let stages = [("stages", path[0].1)];
    let head = if TOP.contains(&path[0].0) {
        &[][..]
    } else {
        &stages[..]
    };
    let mut place = pipeline;
    for (key, span) in head.iter().chain(path) {
        if !matches!(place.kind, Kind::Map(_)) {
            place.kind = Kind::Map(Vec::new());
        }
        let Kind::Map(entries) = &mut place.kind else {
            return;
        };
        let found = entries.iter().position(|entry| entry.key == *key);
        let index = found.unwrap_or_else(|| {
            entries.push(Entry {
                key: (*key).to_owned(),
                key_span: *span,
                value: Yaml::new(Kind::Null, *span),
            });
            entries.len() - 1
        });
        place = &mut entries[index].value;
    }
    *place = value.clone();
}

/// Reads `key=value` of `--set`; the value is YAML.
pub fn parse_set(text: &str, source: u32, problems: &mut Problems) -> Option<Entry> {
    let Some((key, value)) = text.split_once('=').filter(|(key, _)| !key.is_empty()) else {
        problems.push(
            Diagnostic::new(whole(text, source), "`--set` takes `key=value`")
                .help("for example `--set questions.with.limit=100`"),
        );
        return None;
    };
    let offset = key.chars().count() as u32 + 1;
    let value = parse_value(value, offset, text, source, problems)?;
    Some(entry(key, source, value))
}

/// Reads `key=a,b` of `--matrix`: YAML values between commas, or one YAML list.
pub fn parse_matrix(text: &str, source: u32, problems: &mut Problems) -> Option<Entry> {
    let parts = text.split_once('=');
    let Some((key, values)) = parts.filter(|(key, values)| !key.is_empty() && !values.is_empty())
    else {
        problems.push(
            Diagnostic::new(whole(text, source), "`--matrix` takes `key=value,value`")
                .help("for example `--matrix train.with.learning_rate=0.0005,0.001`"),
        );
        return None;
    };
    let mut offset = key.chars().count() as u32 + 1;
    if values.trim_start().starts_with('[') {
        let value = parse_value(values, offset, text, source, problems)?;
        return Some(entry(key, source, value));
    }
    let span = Span {
        start: offset,
        ..whole(text, source)
    };
    let mut items = Vec::new();
    for value in values.split(',') {
        items.push(parse_value(value, offset, text, source, problems)?);
        offset += value.chars().count() as u32 + 1;
    }
    Some(entry(key, source, Yaml::new(Kind::List(items), span)))
}

/// An argument from end to end.
fn whole(text: &str, source: u32) -> Span {
    Span {
        source,
        start: 0,
        end: text.chars().count() as u32,
    }
}

fn entry(key: &str, source: u32, value: Yaml) -> Entry {
    Entry {
        key: key.to_owned(),
        key_span: whole(key, source),
        value,
    }
}

/// A YAML value that begins at `offset` of the argument `text`; nothing at all is null.
fn parse_value(
    value: &str,
    offset: u32,
    text: &str,
    source: u32,
    problems: &mut Problems,
) -> Option<Yaml> {
    let before = problems.len();
    let parsed = super::yaml::parse(value, source, problems);
    for problem in &mut problems[before..] {
        problem.span = Some(whole(text, source));
    }
    match parsed {
        Some(value) => Some(shift(value, offset)),
        None if problems.len() == before => Some(Yaml::new(Kind::Null, whole(text, source))),
        None => None,
    }
}

fn shift(mut yaml: Yaml, by: u32) -> Yaml {
    let moved = |span: Span| Span {
        start: span.start + by,
        end: span.end + by,
        ..span
    };
    yaml.span = moved(yaml.span);
    yaml.kind = match yaml.kind {
        Kind::List(items) => Kind::List(items.into_iter().map(|item| shift(item, by)).collect()),
        Kind::Map(entries) => {
            let entry = |entry: Entry| Entry {
                key_span: moved(entry.key_span),
                value: shift(entry.value, by),
                ..entry
            };
            Kind::Map(entries.into_iter().map(entry).collect())
        }
        other => other,
    };
    yaml
}
