//! Profiles and `--set`: values laid over a pipeline before it is read.
//!
//! Both speak of `models.<name>…`, `<stage>.with…`, `<stage>.inputs…`, `<stage>.resources…`, `seed`, `cache…` and `tracking…`, with
//! dotted or nested keys. A laid-over value keeps the place it was written at, so that a wrong one is shown in its profile.

use super::diagnostic::{Diagnostic, Problems};
use super::source::Span;
use super::suggest;
use super::yaml::{Entry, Kind, Yaml};

/// Keys of a pipeline that an override may begin with; anything else is the name of a stage.
const TOP: [&str; 4] = ["models", "seed", "cache", "tracking"];
/// Keys of a stage call that may be overridden.
const CALL: [&str; 3] = ["with", "inputs", "resources"];

/// Splits a dotted entry into its path and value, one for each leaf mapping key that is written nested.
struct Override<'a> {
    path: Vec<(&'a str, Span)>,
    value: &'a Yaml,
}

/// Checks what a profile speaks of and, if `apply`, lays it over `pipeline`.
pub fn lay_over(pipeline: &mut Yaml, overrides: &[Entry], apply: bool, problems: &mut Problems) {
    for entry in overrides {
        let mut found = Vec::new();
        leaves(Vec::new(), entry, &mut found);
        for one in found {
            if target_exists(pipeline, &one, problems) && apply {
                set(pipeline, &one.path, one.value);
            }
        }
    }
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

fn target_exists(pipeline: &Yaml, one: &Override, problems: &mut Problems) -> bool {
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
fn set(pipeline: &mut Yaml, path: &[(&str, Span)], value: &Yaml) {
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
    let whole = Span {
        source,
        start: 0,
        end: text.chars().count() as u32,
    };
    let Some((key, value)) = text.split_once('=').filter(|(key, _)| !key.is_empty()) else {
        problems.push(
            Diagnostic::new(whole, "`--set` takes `key=value`")
                .help("for example `--set questions.with.limit=100`"),
        );
        return None;
    };
    let offset = key.chars().count() as u32 + 1;
    let before = problems.len();
    let parsed = super::yaml::parse(value, source, problems);
    for problem in &mut problems[before..] {
        problem.span = Some(whole);
    }
    let value = match parsed {
        Some(value) => shift(value, offset),
        None if problems.len() == before => Yaml::new(Kind::Null, whole),
        None => return None,
    };
    Some(Entry {
        key: key.to_owned(),
        key_span: Span {
            end: offset - 1,
            ..whole
        },
        value,
    })
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
