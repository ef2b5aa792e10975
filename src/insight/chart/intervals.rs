//! Estimates with their confidence intervals, one below the other, around zero.

use super::WIDTH;
use super::scale::Scale;
use super::svg::{Anchor, Svg};
use crate::metrics::Interval;

pub struct Estimate {
    pub label: String,
    pub value: f64,
    pub interval: Interval,
    /// What stands at the right edge.
    pub note: String,
}

const ROW: f64 = 24.0;
const LABEL: f64 = 112.0;
const NOTE: f64 = 136.0;

/// A dot for each estimate with a line over its interval; an interval without zero is drawn strong.
pub fn intervals(title: &str, axis: &str, estimates: &[Estimate]) -> String {
    let ends = estimates
        .iter()
        .flat_map(|estimate| [estimate.interval.low, estimate.interval.high])
        .chain([0.0]);
    let x = Scale::around(ends, LABEL, WIDTH - NOTE).rounded(3);
    let bottom = estimates.len() as f64 * ROW;
    let mut svg = Svg::new(WIDTH, bottom + 38.0, title);
    for (value, label) in x.ticks(3) {
        let class = if value == 0.0 { "axis" } else { "grid" };
        svg.line(class, (x.at(value), 0.0), (x.at(value), bottom));
        svg.text("tick", (x.at(value), bottom + 16.0), Anchor::Middle, &label);
    }
    svg.text(
        "tick",
        ((LABEL + WIDTH - NOTE) / 2.0, bottom + 33.0),
        Anchor::Middle,
        axis,
    );
    for (index, estimate) in estimates.iter().enumerate() {
        let Interval { low, high } = estimate.interval;
        let middle = (index as f64 + 0.5) * ROW;
        let sure = low > 0.0 || high < 0.0;
        let class = if sure { "whisker" } else { "whisker unsure" };
        svg.cut_text(
            "name",
            (LABEL - 8.0, middle + 4.5),
            Anchor::End,
            &estimate.label,
            18,
        );
        svg.line(class, (x.at(low), middle), (x.at(high), middle));
        let class = if sure { "point" } else { "point unsure" };
        let tip = format!("{}: {}", estimate.label, estimate.note);
        svg.dot(class, (x.at(estimate.value), middle), 4.0, &tip);
        svg.text(
            "value",
            (WIDTH - NOTE + 8.0, middle + 4.5),
            Anchor::Start,
            &estimate.note,
        );
    }
    svg.finish("chart")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_with_zero_in_it_is_unsure() {
        let estimate = |low, high| Estimate {
            label: "treatment".to_owned(),
            value: (low + high) / 2.0,
            interval: Interval { low, high },
            note: String::new(),
        };
        let drawn = intervals("t", "F1", &[estimate(1.0, 2.0), estimate(-1.0, 2.0)]);
        assert_eq!(drawn.matches("whisker unsure").count(), 1);
        assert_eq!(drawn.matches("class=\"whisker\"").count(), 1);
        assert_eq!(drawn.matches("class=\"axis\"").count(), 1);
    }
}
