//! Writes SVG elements; knows no chart.

use std::fmt::Write as _;

/// A drawing of a fixed size that scales with the page.
pub struct Svg {
    body: String,
    width: f64,
    height: f64,
    label: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Anchor {
    Start,
    Middle,
    End,
}

impl Svg {
    /// `label` is what a screen reader says.
    pub fn new(width: f64, height: f64, label: &str) -> Self {
        Self {
            body: String::new(),
            width,
            height,
            label: label.to_owned(),
        }
    }

    /// The element; `class` goes to it.
    pub fn finish(self, class: &str) -> String {
        let Self {
            body,
            width,
            height,
            label,
        } = self;
        format!(
            "<svg class=\"{class}\" width=\"{0}\" height=\"{1}\" viewBox=\"0 0 {0} {1}\" role=\"img\" aria-label=\"{2}\">{body}</svg>",
            short(width),
            short(height),
            escape(&label)
        )
    }

    pub fn rect(
        &mut self,
        class: &str,
        (x, y): (f64, f64),
        (width, height): (f64, f64),
        tip: &str,
    ) {
        let _ = write!(
            self.body,
            "<rect class=\"{class}\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" rx=\"2\">{}</rect>",
            short(x),
            short(y),
            short(width.max(0.0)),
            short(height.max(0.0)),
            title(tip)
        );
    }

    pub fn line(&mut self, class: &str, (x1, y1): (f64, f64), (x2, y2): (f64, f64)) {
        let _ = write!(
            self.body,
            "<line class=\"{class}\" x1=\"{}\" y1=\"{}\" x2=\"{}\" y2=\"{}\"/>",
            short(x1),
            short(y1),
            short(x2),
            short(y2)
        );
    }

    pub fn dot(&mut self, class: &str, (x, y): (f64, f64), radius: f64, tip: &str) {
        let _ = write!(
            self.body,
            "<circle class=\"{class}\" cx=\"{}\" cy=\"{}\" r=\"{}\">{}</circle>",
            short(x),
            short(y),
            short(radius),
            title(tip)
        );
    }

    /// A line through points.
    pub fn polyline(&mut self, class: &str, points: &[(f64, f64)]) {
        let mut path = String::new();
        for (index, (x, y)) in points.iter().enumerate() {
            let _ = write!(
                path,
                "{}{} {}",
                if index == 0 { "M" } else { "L" },
                short(*x),
                short(*y)
            );
        }
        self.path(class, &path);
    }

    /// A path in SVG's own words.
    pub fn path(&mut self, class: &str, path: &str) {
        let _ = write!(self.body, "<path class=\"{class}\" d=\"{path}\"/>");
    }

    pub fn text(&mut self, class: &str, (x, y): (f64, f64), anchor: Anchor, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let _ = write!(
            self.body,
            "<text class=\"{class}\" x=\"{}\" y=\"{}\" text-anchor=\"{anchor}\">{}</text>",
            short(x),
            short(y),
            escape(text)
        );
    }

    /// A text cut to so many characters, whole where one points at it.
    pub fn cut_text(
        &mut self,
        class: &str,
        at: (f64, f64),
        anchor: Anchor,
        text: &str,
        most: usize,
    ) {
        let shown = cut(text, most);
        if shown == text {
            return self.text(class, at, anchor, text);
        }
        self.body.push_str("<g>");
        self.body.push_str(&title(text));
        self.text(class, at, anchor, &shown);
        self.body.push_str("</g>");
    }
}

/// The first characters of a text with an ellipsis where it was longer.
pub fn cut(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    let kept: String = text.chars().take(most.saturating_sub(1)).collect();
    format!("{}…", kept.trim_end())
}

fn title(tip: &str) -> String {
    if tip.is_empty() {
        String::new()
    } else {
        format!("<title>{}</title>", escape(tip))
    }
}

/// Text that is no markup.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            // Not allowed in XML, whatever a data set holds.
            '\0'..='\u{8}' | '\u{b}' | '\u{c}' | '\u{e}'..='\u{1f}' => escaped.push('\u{fffd}'),
            other => escaped.push(other),
        }
    }
    escaped
}

/// A coordinate with one decimal at most.
fn short(value: f64) -> String {
    let text = format!("{value:.1}");
    text.strip_suffix(".0").unwrap_or(&text).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_no_markup() {
        let mut svg = Svg::new(10.0, 10.0, "a \"b\"");
        svg.cut_text("t", (1.0, 2.25), Anchor::End, "<b>&\u{1}long</b>", 6);
        insta::assert_snapshot!(svg.finish("chart"), @r#"<svg class="chart" width="10" height="10" viewBox="0 0 10 10" role="img" aria-label="a &quot;b&quot;"><g><title>&lt;b&gt;&amp;�long&lt;/b&gt;</title><text class="t" x="1" y="2.2" text-anchor="end">&lt;b&gt;&amp;�…</text></g></svg>"#);
    }
}
