//! Diagnostics as people read them: the file, line and column, the line itself, a caret, and the next step.

use std::fmt;

use miette::{GraphicalReportHandler, GraphicalTheme, LabeledSpan, NamedSource, SourceCode};

use super::diagnostic::{Diagnostic, Diagnostics};

/// One diagnostic with its text, in the form miette draws.
#[derive(Debug)]
struct Report<'a> {
    message: String,
    diagnostic: &'a Diagnostic,
    source: Option<NamedSource<String>>,
    label: Option<LabeledSpan>,
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Report<'_> {}

impl miette::Diagnostic for Report<'_> {
    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.diagnostic
            .help
            .as_ref()
            .map(|help| Box::new(help) as Box<dyn fmt::Display>)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.source.as_ref().map(|source| source as &dyn SourceCode)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        self.label.as_ref().map(|label| {
            Box::new(std::iter::once(label.clone())) as Box<dyn Iterator<Item = LabeledSpan>>
        })
    }
}

/// Bytes of a line that is drawn; nobody finds a caret in a longer one, and the library cannot pad by more than a `u16`.
const LONGEST_LINE: usize = 1_000;

impl Diagnostics {
    /// All problems, drawn one below the other. `width` is the terminal's.
    pub fn render(&self, colour: bool, width: usize) -> String {
        let theme = if colour {
            GraphicalTheme::unicode()
        } else {
            GraphicalTheme::unicode_nocolor()
        };
        let handler = GraphicalReportHandler::new_themed(theme)
            .with_width(width.max(40))
            .with_links(false)
            .with_context_lines(1);
        let mut text = String::new();
        for diagnostic in &self.problems {
            let mut message = diagnostic.message.clone();
            let (source, label) = match diagnostic.span {
                Some(span) if self.sources.get(span).longest_line_at(span) > LONGEST_LINE => {
                    let source = self.sources.get(span);
                    let (line, column) = source.line_column(span);
                    message = format!("{}:{line}:{column}: {message}", source.name);
                    if let Some(label) = &diagnostic.label {
                        message = format!("{message} ({label})");
                    }
                    (None, None)
                }
                Some(span) => {
                    let source = self.sources.get(span);
                    let range = source.bytes(span);
                    (
                        Some(NamedSource::new(&source.name, source.text.clone())),
                        Some(LabeledSpan::new(
                            diagnostic.label.clone(),
                            range.start,
                            range.len(),
                        )),
                    )
                }
                None => (None, None),
            };
            let report = Report {
                message,
                diagnostic,
                source,
                label,
            };
            if handler.render_report(&mut text, &report).is_err() {
                text.push_str(&diagnostic.message);
            }
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::super::source::{Sources, Span};
    use super::*;

    #[test]
    fn what_stands_in_a_line_without_end_is_told_without_drawing_it() {
        let mut sources = Sources::default();
        let text = format!("stages:\n  a: {{ {}uses: x }}\n", " ".repeat(70_000));
        let source = sources.add("p.yaml", text);
        let span = Span {
            source,
            start: 70_015,
            end: 70_019,
        };
        let problem = Diagnostic::new(span, "unknown stage")
            .label("here")
            .help("name one");
        let text = Diagnostics::new(sources, vec![problem]).render(false, 80);
        insta::assert_snapshot!(text, @"
        × p.yaml:2:70008: unknown stage (here)
        help: name one
        ");
    }
}
