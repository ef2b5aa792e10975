//! Horizontal bars with their names before them and their values behind.

use super::WIDTH;
use super::svg::{Anchor, Svg};

pub struct Bar {
    pub label: String,
    pub value: f64,
    /// What it is a part of, drawn faint behind it.
    pub of: Option<f64>,
    /// What stands at its end.
    pub note: String,
}

const ROW: f64 = 24.0;
const LABEL: f64 = 118.0;
const NOTE: f64 = 102.0;

/// Bars from zero, one below the other; `title` is for those who cannot see them.
pub fn bars(title: &str, bars: &[Bar]) -> String {
    let most = bars
        .iter()
        .map(|bar| bar.of.unwrap_or(bar.value).max(bar.value))
        .fold(0.0, f64::max)
        .max(f64::MIN_POSITIVE);
    let room = WIDTH - LABEL - NOTE;
    let mut svg = Svg::new(WIDTH, bars.len() as f64 * ROW, title);
    for (index, bar) in bars.iter().enumerate() {
        let top = index as f64 * ROW;
        let middle = top + ROW / 2.0 + 4.5;
        let length = |value: f64| value / most * room;
        svg.cut_text("name", (LABEL - 6.0, middle), Anchor::End, &bar.label, 18);
        let tip = format!("{}: {}", bar.label, bar.note);
        let size = |value| (length(value), ROW - 8.0);
        if let Some(of) = bar.of {
            svg.rect("faint", (LABEL, top + 4.0), size(of), &tip);
        }
        svg.rect("mark", (LABEL, top + 4.0), size(bar.value), &tip);
        let end = LABEL + length(bar.of.unwrap_or(bar.value).max(bar.value)) + 6.0;
        svg.text("value", (end, middle), Anchor::Start, &bar.note);
    }
    svg.finish("chart")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_as_long_as_its_value() {
        let bar = |label: &str, value, of| Bar {
            label: label.to_owned(),
            value,
            of,
            note: "n".to_owned(),
        };
        let drawn = bars("t", &[bar("a", 5.0, Some(10.0)), bar("<b>", 2.0, None)]);
        let widths: Vec<_> = drawn
            .split("width=\"")
            .skip(2)
            .map(|part| part.split('"').next().unwrap())
            .collect();
        assert_eq!(widths, ["180", "90", "36"]);
        assert!(drawn.contains("&lt;b&gt;"));
        assert!(bars("t", &[]).contains("viewBox=\"0 0 400 0\""));
    }
}
