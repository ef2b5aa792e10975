//! The texts a configuration is read from, and places in them.

use std::sync::Arc;

/// One text: a YAML file, or an argument of the command line.
#[derive(Debug)]
pub struct Source {
    /// How the text is called in messages: a path, or `--set`.
    pub name: String,
    pub text: String,
}

/// All texts read so far; a [`Span`] names one of them by its position here.
#[derive(Debug, Clone, Default)]
pub struct Sources(Vec<Arc<Source>>);

/// A stretch of characters in one of the [`Sources`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Span {
    pub source: u32,
    /// The first character, counted in characters.
    pub start: u32,
    /// The character after the last one.
    pub end: u32,
}

impl Sources {
    /// Adds a text and returns its position.
    pub fn add(&mut self, name: impl Into<String>, text: impl Into<String>) -> u32 {
        self.0.push(Arc::new(Source {
            name: name.into(),
            text: text.into(),
        }));
        (self.0.len() - 1) as u32
    }

    pub fn get(&self, span: Span) -> &Source {
        &self.0[span.source as usize]
    }
}

impl Source {
    /// The bytes of a span, cut at the end of its first line so that a whole mapping is pointed at by its beginning.
    pub fn bytes(&self, span: Span) -> std::ops::Range<usize> {
        let byte_of = |character: u32| {
            self.text
                .char_indices()
                .nth(character as usize)
                .map_or(self.text.len(), |(byte, _)| byte)
        };
        let start = byte_of(span.start);
        let end = byte_of(span.end).max(start);
        let line = self.text[start..end]
            .lines()
            .next()
            .unwrap_or("")
            .trim_end();
        start..start + line.len()
    }

    /// Bytes of the longest among the line in which a span begins and the two beside it.
    pub fn longest_line_at(&self, span: Span) -> usize {
        let start = self.bytes(span).start;
        let before = self.text[..start].rsplit('\n').take(2).map(str::len);
        let after = self.text[start..].split('\n').take(2).map(str::len);
        // The first of each are the two halves of the same line.
        let (before, after): (Vec<_>, Vec<_>) = (before.collect(), after.collect());
        let own = before[0] + after[0];
        before[1..]
            .iter()
            .chain(&after[1..])
            .fold(own, |most, &length| most.max(length))
    }

    /// Line and column of a span's beginning, both from 1.
    pub fn line_column(&self, span: Span) -> (usize, usize) {
        let before = &self.text[..self.bytes(span).start];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        (
            before.matches('\n').count() + 1,
            before[line_start..].chars().count() + 1,
        )
    }
}

impl Span {
    /// Where something that was not written anywhere would stand: the beginning of a text.
    pub fn start_of(source: u32) -> Self {
        Self {
            source,
            start: 0,
            end: 0,
        }
    }
}
