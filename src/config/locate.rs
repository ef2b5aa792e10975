//! The document path of a place, such as `stages.dedup.with.similarity`: for programs, which do not look at carets.

use serde_json::{Value, json};

use super::diagnostic::{Diagnostic, Diagnostics, Problems};
use super::source::{Sources, Span};
use super::yaml::{self, Kind, Yaml};

/// The dotted path of the innermost key or list item that a span belongs to; empty at the top or in broken YAML.
pub fn document_path(sources: &Sources, span: Span) -> String {
    let text = &sources.get(span).text;
    let Some(mut place) = yaml::parse(text, span.source, &mut Problems::new()) else {
        return String::new();
    };
    let mut path: Vec<String> = Vec::new();
    while let Some((key, next)) = step(place, span) {
        path.push(key);
        place = next;
    }
    path.join(".")
}

fn step(place: Yaml, span: Span) -> Option<(String, Yaml)> {
    let inside =
        |outer: Span| outer.start <= span.start && span.start < outer.end.max(outer.start + 1);
    match place.kind {
        Kind::Map(entries) => {
            let entry = entries
                .into_iter()
                .find(|entry| inside(entry.key_span) || inside(entry.value.span))?;
            if entry.key_span.start == span.start {
                return Some((entry.key, Yaml::new(Kind::Null, span)));
            }
            Some((entry.key, entry.value))
        }
        Kind::List(items) => {
            let (index, item) = items
                .into_iter()
                .enumerate()
                .find(|(_, item)| inside(item.span))?;
            Some((index.to_string(), item))
        }
        _ => None,
    }
}

impl Diagnostics {
    /// For `--json`: one object per problem.
    pub fn to_json(&self) -> Value {
        let one = |problem: &Diagnostic| {
            let place = problem.span.map(|span| {
                let source = self.sources.get(span);
                let (line, column) = source.line_column(span);
                json!({ "file": source.name, "line": line, "column": column, "path": document_path(&self.sources, span) })
            });
            json!({ "message": problem.message, "place": place, "hint": problem.label, "help": problem.help })
        };
        Value::Array(self.problems.iter().map(one).collect())
    }
}
