//! Reads a mapping key by key and collects what is wrong with it: unknown keys, wrong types, missing ones.

use super::diagnostic::{Diagnostic, Problems};
use super::source::Span;
use super::yaml::{Entry, Kind, Yaml};
use super::{scalar, suggest};

pub struct Fields<'a> {
    /// What the mapping is, for messages: `a stage call`.
    what: &'static str,
    entries: &'a [Entry],
    /// Where to point when a key is missing.
    place: Span,
    known: Vec<&'static str>,
}

impl<'a> Fields<'a> {
    /// `None` (and a problem) where `yaml` is no mapping.
    pub fn of(
        yaml: &'a Yaml,
        what: &'static str,
        place: Span,
        problems: &mut Problems,
    ) -> Option<Self> {
        let entries = entries(yaml, what, problems)?;
        Some(Self {
            what,
            entries,
            place,
            known: Vec::new(),
        })
    }

    /// The entry of `key`; an empty value counts as not given.
    pub fn entry(&mut self, key: &'static str) -> Option<&'a Entry> {
        self.known.push(key);
        self.entries
            .iter()
            .find(|entry| entry.key == key && !entry.value.is_null())
    }

    pub fn get(&mut self, key: &'static str) -> Option<&'a Yaml> {
        self.entry(key).map(|entry| &entry.value)
    }

    pub fn text(&mut self, key: &'static str, problems: &mut Problems) -> Option<String> {
        self.get(key).and_then(|yaml| text(yaml, key, problems))
    }

    pub fn require(&mut self, key: &'static str, problems: &mut Problems) -> Option<&'a Yaml> {
        let value = self.get(key);
        if value.is_none() {
            let message = format!("{} needs the key `{key}`", self.what);
            problems.push(Diagnostic::new(self.place, message).help(format!("add `{key}: …`")));
        }
        value
    }

    pub fn bool(&mut self, key: &'static str, problems: &mut Problems) -> Option<bool> {
        let yaml = self.get(key)?;
        match yaml.kind {
            Kind::Bool(value) => Some(value),
            _ => {
                problems.push(expected(yaml, key, "`true` or `false`"));
                None
            }
        }
    }

    pub fn number(
        &mut self,
        key: &'static str,
        problems: &mut Problems,
    ) -> Option<serde_json::Number> {
        let yaml = self.get(key)?;
        match read_env(yaml).kind {
            Kind::Number(number) => Some(number),
            _ => {
                problems.push(expected(yaml, key, "a number"));
                None
            }
        }
    }

    /// Reports every key that was not asked for.
    pub fn finish(self, problems: &mut Problems) {
        for entry in self
            .entries
            .iter()
            .filter(|entry| !self.known.contains(&entry.key.as_str()))
        {
            let guess = suggest::closest(&entry.key, self.known.iter().copied());
            let message = format!("unknown key `{}` in {}", entry.key, self.what);
            let known = suggest::list(self.known.iter().copied());
            problems.push(
                Diagnostic::new(entry.key_span, message)
                    .guess(guess)
                    .help(format!("the keys here are {known}")),
            );
        }
    }
}

/// The entries of a mapping; nothing at all is an empty mapping.
pub fn entries<'a>(yaml: &'a Yaml, what: &str, problems: &mut Problems) -> Option<&'a [Entry]> {
    match &yaml.kind {
        Kind::Map(entries) => Some(entries),
        Kind::Null => Some(&[]),
        _ => {
            problems.push(
                Diagnostic::new(
                    yaml.span,
                    format!("{what} is a mapping, this is {}", yaml.describe()),
                )
                .help("write `key: value` pairs"),
            );
            None
        }
    }
}

pub fn text(yaml: &Yaml, key: &str, problems: &mut Problems) -> Option<String> {
    match &yaml.kind {
        Kind::Text(text) => Some(text.clone()),
        _ => {
            problems.push(expected(yaml, key, "a text"));
            None
        }
    }
}

/// "`seed` is a number, this is a list".
pub fn expected(yaml: &Yaml, name: &str, what: &str) -> Diagnostic {
    Diagnostic::new(
        yaml.span,
        format!("`{name}` takes {what}, this is {}", yaml.describe()),
    )
}

/// The value of an environment variable is text; where anything else is wanted it is read as YAML would read it.
pub fn read_env(yaml: &Yaml) -> Yaml {
    match &yaml.kind {
        Kind::Text(text) if yaml.from_env => Yaml::new(scalar::resolve(text), yaml.span),
        _ => yaml.clone(),
    }
}
