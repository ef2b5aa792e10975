//! YAML text to a tree in which every key and value knows where it was written.
//!
//! Read from the events of saphyr-parser. Duplicate keys, odd keys and the like are collected; only broken syntax ends it.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError};
use serde_json::{Map, Number, Value};

use super::diagnostic::{Diagnostic, Problems};
use super::scalar;
use super::source::Span;

/// How deep values may be nested.
const MAX_DEPTH: usize = 64;
/// How many values all aliases of a file may stand for together.
const MAX_ALIASED: usize = 100_000;

#[derive(Debug, Clone, PartialEq)]
pub struct Yaml {
    pub kind: Kind,
    pub span: Span,
    /// A text that holds the value of an environment variable: it is read as a number where a number is expected.
    pub from_env: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    Null,
    Bool(bool),
    Number(Number),
    Text(String),
    List(Vec<Yaml>),
    Map(Vec<Entry>),
}

#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    pub key: String,
    pub key_span: Span,
    pub value: Yaml,
}

impl Yaml {
    pub fn new(kind: Kind, span: Span) -> Self {
        Self {
            kind,
            span,
            from_env: false,
        }
    }

    pub fn from_json(value: &Value, span: Span) -> Self {
        let kind = match value {
            Value::Null => Kind::Null,
            Value::Bool(value) => Kind::Bool(*value),
            Value::Number(number) => Kind::Number(number.clone()),
            Value::String(text) => Kind::Text(text.clone()),
            Value::Array(items) => Kind::List(
                items
                    .iter()
                    .map(|item| Self::from_json(item, span))
                    .collect(),
            ),
            Value::Object(fields) => {
                let entry = |(key, value): (&String, &Value)| Entry {
                    key: key.clone(),
                    key_span: span,
                    value: Self::from_json(value, span),
                };
                Kind::Map(fields.iter().map(entry).collect())
            }
        };
        Self::new(kind, span)
    }

    pub fn to_json(&self) -> Value {
        match &self.kind {
            Kind::Null => Value::Null,
            Kind::Bool(value) => Value::Bool(*value),
            Kind::Number(number) => Value::Number(number.clone()),
            Kind::Text(text) => Value::String(text.clone()),
            Kind::List(items) => Value::Array(items.iter().map(Self::to_json).collect()),
            Kind::Map(entries) => Value::Object(to_object(entries)),
        }
    }

    pub fn is_null(&self) -> bool {
        self.kind == Kind::Null
    }

    /// The entry of a mapping; `None` also where this is no mapping.
    pub fn entry(&self, key: &str) -> Option<&Entry> {
        match &self.kind {
            Kind::Map(entries) => entries.iter().find(|entry| entry.key == key),
            _ => None,
        }
    }

    /// What this is, for messages: `the text `abc``, `a mapping`.
    pub fn describe(&self) -> String {
        match &self.kind {
            Kind::Null => "nothing".to_owned(),
            Kind::Bool(value) => format!("the boolean `{value}`"),
            Kind::Number(number) if number.is_f64() => format!("the number `{number}`"),
            Kind::Number(number) => format!("the integer `{number}`"),
            Kind::Text(text) if text.chars().count() > 40 || text.contains('\n') => {
                "a text".to_owned()
            }
            Kind::Text(text) => format!("the text `{text}`"),
            Kind::List(_) => "a list".to_owned(),
            Kind::Map(_) => "a mapping".to_owned(),
        }
    }

    fn count(&self) -> usize {
        match &self.kind {
            Kind::List(items) => 1 + items.iter().map(Self::count).sum::<usize>(),
            Kind::Map(entries) => {
                1 + entries
                    .iter()
                    .map(|entry| entry.value.count())
                    .sum::<usize>()
            }
            _ => 1,
        }
    }
}

/// Mapping entries as a JSON object.
pub fn to_object(entries: &[Entry]) -> Map<String, Value> {
    entries
        .iter()
        .map(|entry| (entry.key.clone(), entry.value.to_json()))
        .collect()
}

/// Parses one document. `None` when the text holds no value at all or its syntax is broken; the problem is then in `problems`.
pub fn parse(text: &str, source: u32, problems: &mut Problems) -> Option<Yaml> {
    let mut builder = Builder {
        source,
        stack: Vec::new(),
        anchors: HashMap::new(),
        aliased: 0,
        root: None,
        documents: 0,
        problems,
    };
    for event in Parser::new_from_str(text) {
        let step = match event {
            Ok((event, span)) => builder.event(event, span),
            Err(error) => Err(syntax_error(&error, text, source)),
        };
        if let Err(problem) = step {
            problems.push(problem);
            return None;
        }
    }
    builder.root
}

/// A collection that is still open.
struct Open {
    anchor: usize,
    start: u32,
    items: Items,
}

enum Items {
    List(Vec<Yaml>),
    Map {
        entries: Vec<Entry>,
        places: HashMap<String, Span>,
        key: Option<(String, Span)>,
    },
}

struct Builder<'a> {
    source: u32,
    stack: Vec<Open>,
    anchors: HashMap<usize, Yaml>,
    aliased: usize,
    root: Option<Yaml>,
    documents: usize,
    problems: &'a mut Problems,
}

impl Builder<'_> {
    fn event(&mut self, event: Event<'_>, span: saphyr_parser::Span) -> Result<(), Diagnostic> {
        let span = Span {
            source: self.source,
            start: span.start.index() as u32,
            end: span.end.index() as u32,
        };
        match event {
            Event::DocumentStart(_) => {
                self.documents += 1;
                if self.documents > 1 {
                    return Err(Diagnostic::new(span, "a second document begins here")
                        .help("keep one document in a file; remove this `---` and what follows"));
                }
            }
            Event::Scalar(text, style, anchor, tag) => {
                let is_text = tag
                    .as_ref()
                    .is_some_and(|tag| tag.is_yaml_core_schema() && tag.suffix == "str");
                if let Some(tag) = tag.filter(|_| !is_text) {
                    self.problems.push(
                        Diagnostic::new(span, format!("the tag `{tag}` is not understood"))
                            .help("remove the tag"),
                    );
                }
                let plain = style == ScalarStyle::Plain && !is_text;
                let kind = if plain && !self.expects_key() {
                    scalar::resolve(&text)
                } else {
                    Kind::Text(text.into_owned())
                };
                self.place(Yaml::new(kind, span), anchor)?;
            }
            Event::SequenceStart(anchor, _) => self.open(anchor, span, Items::List(Vec::new()))?,
            Event::MappingStart(anchor, _) => {
                self.open(
                    anchor,
                    span,
                    Items::Map {
                        entries: Vec::new(),
                        places: HashMap::new(),
                        key: None,
                    },
                )?;
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(span)?,
            Event::Alias(anchor) => {
                let Some(value) = self.anchors.get(&anchor).cloned() else {
                    return Err(Diagnostic::new(
                        span,
                        "this alias stands inside the value it names",
                    )
                    .help("write the value out"));
                };
                self.aliased += value.count();
                if self.aliased > MAX_ALIASED {
                    let message = format!(
                        "the aliases of this file stand for more than {MAX_ALIASED} values"
                    );
                    return Err(
                        Diagnostic::new(span, message).help("write fewer aliases of aliases")
                    );
                }
                self.place(value, 0)?;
            }
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {}
        }
        Ok(())
    }

    fn expects_key(&self) -> bool {
        matches!(
            self.stack.last(),
            Some(Open {
                items: Items::Map { key: None, .. },
                ..
            })
        )
    }

    fn open(&mut self, anchor: usize, span: Span, items: Items) -> Result<(), Diagnostic> {
        if self.stack.len() >= MAX_DEPTH {
            return Err(Diagnostic::new(
                span,
                format!("values are nested more than {MAX_DEPTH} deep"),
            )
            .help("flatten this part"));
        }
        self.stack.push(Open {
            anchor,
            start: span.start,
            items,
        });
        Ok(())
    }

    fn close(&mut self, span: Span) -> Result<(), Diagnostic> {
        let Some(open) = self.stack.pop() else {
            return Ok(());
        };
        let kind = match open.items {
            Items::List(items) => Kind::List(items),
            Items::Map { entries, .. } => Kind::Map(entries),
        };
        let span = Span {
            start: open.start,
            ..span
        };
        self.place(Yaml::new(kind, span), open.anchor)
    }

    /// Puts a finished value where it belongs.
    fn place(&mut self, value: Yaml, anchor: usize) -> Result<(), Diagnostic> {
        if anchor != 0 {
            self.anchors.insert(anchor, value.clone());
        }
        match self.stack.last_mut().map(|open| &mut open.items) {
            None => self.root = Some(value),
            Some(Items::List(items)) => items.push(value),
            Some(Items::Map {
                entries,
                places,
                key,
            }) => match key.take() {
                None => {
                    let Kind::Text(text) = value.kind else {
                        let message = format!("a key must be text, this is {}", value.describe());
                        return Err(Diagnostic::new(value.span, message)
                            .help("put quotes around a text that contains `{` or `[`"));
                    };
                    *key = Some((text, value.span));
                }
                Some((name, span)) => {
                    if let Some(first) = places.insert(name.clone(), span) {
                        places.insert(name.clone(), first);
                        let problem =
                            Diagnostic::new(span, format!("the key `{name}` is given twice"));
                        self.problems
                            .push(problem.label("again here").help("remove one of them"));
                    } else {
                        entries.push(Entry {
                            key: name,
                            key_span: span,
                            value,
                        });
                    }
                }
            },
        }
        Ok(())
    }
}

/// The parser's message with its place; a tab that indents gets a message of its own, whatever the parser made of it.
fn syntax_error(error: &ScanError, text: &str, source: u32) -> Diagnostic {
    let marker = error.marker();
    let tab = text.lines().take(marker.line()).scan(0, |start, line| {
        let this = *start;
        *start += line.chars().count() + 1;
        Some((this, line))
    });
    let indent = |line: &str| {
        line.chars()
            .take_while(|character| character.is_whitespace())
            .position(|character| character == '\t')
    };
    // Only the line the parser stopped at and the one before it: a tab inside a block text further up is allowed.
    let tab = tab
        .skip(marker.line().saturating_sub(2))
        .find_map(|(start, line)| Some(start + indent(line)?));
    if let Some(place) = tab {
        let span = Span {
            source,
            start: place as u32,
            end: place as u32 + 1,
        };
        return Diagnostic::new(span, "a tab indents this line, which YAML does not allow")
            .help("indent with spaces");
    }
    // At the end of the file there is nothing to see: point at the last thing that was written.
    let place = marker
        .index()
        .min(text.trim_end().chars().count().saturating_sub(1)) as u32;
    let span = Span {
        source,
        start: place,
        end: place + 1,
    };
    Diagnostic::new(span, format!("this is not valid YAML: {}", error.info()))
        .help("check the indentation, quotes and brackets on this line and the one before it")
}
