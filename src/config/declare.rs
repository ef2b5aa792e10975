//! Reads the `params:`, `inputs:` and `outputs:` of a `stage.yaml` into the types that ops declare in Rust.

use std::collections::BTreeMap;

use super::call::check_name;
use super::check::Checker;
use super::diagnostic::{Diagnostic, Problems};
use super::fields::{self, Fields, expected};
use super::interface::{ArtifactKind, Columns, Param, ParamKind, Port};
use super::suggest;
use super::yaml::{Entry, Kind, Yaml};

pub const TYPES: [&str; 12] = [
    "boolean", "integer", "number", "text", "choice", "model", "file", "path", "list", "record",
    "map", "any",
];
pub const KINDS: [&str; 3] = ["table", "files", "any"];

/// Reads a mapping of params.
pub fn params(yaml: &Yaml, problems: &mut Problems) -> BTreeMap<String, Param> {
    let entries = fields::entries(yaml, "`params`", problems).unwrap_or(&[]);
    entries
        .iter()
        .filter_map(|entry| Some((entry.key.clone(), param(entry, problems)?)))
        .collect()
}

fn param(entry: &Entry, problems: &mut Problems) -> Option<Param> {
    check_name(entry, "a param", problems);
    let mut fields = Fields::of(&entry.value, "a param", entry.key_span, problems)?;
    let kind = kind(&mut fields, problems);
    let doc = fields.text("doc", problems).unwrap_or_default();
    let required = fields.bool("required", problems);
    let optional = fields.bool("optional", problems).unwrap_or(false);
    let default = fields.entry("default");
    if let (Some(true), Some(default)) = (required, default) {
        let message = format!("`{}` is required and has a default", entry.key);
        problems.push(
            Diagnostic::new(default.key_span, message).help("keep one of `required` and `default`"),
        );
    }
    if required == Some(true) && optional {
        let message = format!("`{}` is both required and optional", entry.key);
        problems.push(Diagnostic::new(entry.key_span, message).help("keep one of them"));
    }
    fields.finish(problems);
    let kind = kind?;
    let given = default.is_some();
    let default =
        default.and_then(|written| Checker::new(problems).value(&entry.key, &kind, &written.value));
    // A default that is wrong was reported; it is not missed at every call as well.
    let optional = optional || given && default.is_none();
    let default = default.map(|default| default.to_json());
    Some(Param {
        kind,
        default,
        optional,
        doc,
        in_fingerprint: true,
    })
}

/// Reads `type` with the keys that belong to it.
fn kind(fields: &mut Fields, problems: &mut Problems) -> Option<ParamKind> {
    let yaml = fields.require("type", problems)?;
    let name = fields::text(yaml, "type", problems)?;
    Some(match name.as_str() {
        "boolean" => ParamKind::Bool,
        "integer" => {
            let (min, max) = (
                whole(fields, "min", problems),
                whole(fields, "max", problems),
            );
            ParamKind::Integer { min, max }
        }
        "number" => {
            let bound = |key, fields: &mut Fields, problems: &mut Problems| {
                fields
                    .number(key, problems)
                    .and_then(|number| number.as_f64())
            };
            let (min, max) = (
                bound("min", fields, problems),
                bound("max", fields, problems),
            );
            ParamKind::Number { min, max }
        }
        "text" => ParamKind::Text,
        "choice" => ParamKind::Choice(choices(fields.require("choices", problems)?, problems)),
        "model" => ParamKind::Model,
        "file" => ParamKind::File,
        "path" => ParamKind::Path,
        "list" => ParamKind::List(Box::new(items(fields, problems)?)),
        "map" => ParamKind::Map(Box::new(items(fields, problems)?)),
        "record" => ParamKind::Record(params(fields.require("fields", problems)?, problems)),
        "any" => ParamKind::Any,
        other => {
            let problem = Diagnostic::new(yaml.span, format!("there is no param type `{other}`"))
                .guess(suggest::closest(other, TYPES));
            problems.push(problem.help(format!("the types are {}", suggest::list(TYPES))));
            return None;
        }
    })
}

/// What a list or a map holds: `items: text`, or `items: { type: integer, min: 1 }`.
fn items(fields: &mut Fields, problems: &mut Problems) -> Option<ParamKind> {
    let Some(entry) = fields.entry("items") else {
        return Some(ParamKind::Any);
    };
    let shorthand = Entry {
        key: "type".to_owned(),
        ..entry.clone()
    };
    let shorthand = Yaml::new(Kind::Map(vec![shorthand]), entry.value.span);
    let yaml = if matches!(entry.value.kind, Kind::Text(_)) {
        &shorthand
    } else {
        &entry.value
    };
    let mut fields = Fields::of(yaml, "`items`", entry.key_span, problems)?;
    let kind = kind(&mut fields, problems);
    fields.text("doc", problems);
    fields.finish(problems);
    kind
}

fn whole(fields: &mut Fields, key: &'static str, problems: &mut Problems) -> Option<i64> {
    let yaml = fields.get(key)?;
    match &yaml.kind {
        Kind::Number(number) if number.is_i64() => number.as_i64(),
        _ => {
            problems.push(expected(yaml, key, "a whole number"));
            None
        }
    }
}

fn choices(yaml: &Yaml, problems: &mut Problems) -> Vec<String> {
    let Kind::List(items) = &yaml.kind else {
        problems.push(expected(yaml, "choices", "a list of texts"));
        return Vec::new();
    };
    items
        .iter()
        .filter_map(|item| fields::text(item, "choices", problems))
        .collect()
}

/// Reads a port of a stage: what kind of artifact, with which columns.
pub fn port(entry: &Entry, problems: &mut Problems) -> Option<Port> {
    let mut fields = Fields::of(&entry.value, "an input", entry.key_span, problems)?;
    let kind = fields
        .get("kind")
        .map_or(Some(ArtifactKind::Table), |yaml| {
            artifact_kind(yaml, problems)
        });
    let columns = fields
        .get("columns")
        .map(|yaml| columns(yaml, problems))
        .unwrap_or_default();
    let optional = fields.bool("optional", problems).unwrap_or(false);
    let doc = fields.text("doc", problems).unwrap_or_default();
    fields.finish(problems);
    Some(Port {
        kind,
        doc,
        optional,
        columns,
    })
}

/// `any` gives `None`, as in [`Port`]; so does a wrong kind, whose problem is reported.
fn artifact_kind(yaml: &Yaml, problems: &mut Problems) -> Option<ArtifactKind> {
    match fields::text(yaml, "kind", problems)?.as_str() {
        "table" => Some(ArtifactKind::Table),
        "files" => Some(ArtifactKind::Files),
        "any" => None,
        other => {
            let problem =
                Diagnostic::new(yaml.span, format!("there is no artifact kind `{other}`"))
                    .guess(suggest::closest(other, KINDS));
            problems.push(problem.help(format!("the kinds are {}", suggest::list(KINDS))));
            None
        }
    }
}

/// `[id, question]` or `{ id: VARCHAR, question: VARCHAR }`.
pub fn columns(yaml: &Yaml, problems: &mut Problems) -> Columns {
    match &yaml.kind {
        Kind::List(items) => {
            let name =
                |item: &Yaml| Some((fields::text(item, "columns", problems)?, String::new()));
            items.iter().filter_map(name).collect()
        }
        Kind::Map(entries) => {
            let pair = |entry: &Entry| {
                Some((
                    entry.key.clone(),
                    fields::text(&entry.value, &entry.key, problems)?,
                ))
            };
            entries.iter().filter_map(pair).collect()
        }
        _ => {
            problems.push(expected(
                yaml,
                "columns",
                "a list of names, or a mapping of name to type",
            ));
            Columns::new()
        }
    }
}
