//! Upright bars over a range of whole or binned values.

use super::WIDTH;
use super::scale::Scale;
use super::svg::{Anchor, Svg};
use crate::ui::count;

/// How many values lie in a bin.
pub struct Bin {
    pub label: String,
    pub count: u64,
}

const TOP: f64 = 18.0;
const PLOT: f64 = 130.0;
const LEFT: f64 = 8.0;

/// Bars with their counts on top where there is room, else on the highest; `axis` names the values and their unit.
pub fn histogram(title: &str, axis: &str, bins: &[Bin]) -> String {
    let most = bins.iter().map(|bin| bin.count).max().unwrap_or_default();
    let scale = Scale {
        low: 0.0,
        high: most.max(1) as f64,
        start: TOP + PLOT,
        end: TOP,
    };
    let mut svg = Svg::new(WIDTH, TOP + PLOT + 40.0, title);
    let width = (WIDTH - 2.0 * LEFT) / bins.len().max(1) as f64;
    // A label of so many characters needs about 7 units each.
    let longest = |text: fn(&Bin) -> usize| bins.iter().map(text).max().unwrap_or(1) as f64 * 7.5;
    let every = |room: f64| (room / width).ceil().max(1.0) as usize;
    let names = every(longest(|bin| bin.label.chars().count()) + 6.0);
    // Either all bars say their counts, or only the highest.
    let fits = |bin: &Bin| bin.count == most || count(bin.count).len() as f64 * 6.8 <= width;
    let all = bins.iter().all(fits);
    // A last bin that takes all that is more must say so.
    let last = bins.len().saturating_sub(1);
    let open = bins.last().is_some_and(|bin| bin.label.starts_with('≥'));
    for (index, bin) in bins.iter().enumerate() {
        let left = LEFT + index as f64 * width;
        let top = scale.at(bin.count as f64);
        let tip = format!("{} {axis}: {}", bin.label, count(bin.count));
        svg.rect(
            "mark",
            (left + 1.0, top),
            (width - 2.0, TOP + PLOT - top),
            &tip,
        );
        let middle = left + width / 2.0;
        if bin.count > 0 && (all || bin.count == most) {
            svg.text(
                "value",
                (middle, top - 4.0),
                Anchor::Middle,
                &count(bin.count),
            );
        }
        let is_named = match (open, last - index) {
            (true, 0) => true,
            (true, left) => index % names == 0 && left >= names,
            (false, _) => index % names == 0,
        };
        if is_named {
            // The last may be wider than its bar.
            let room = (WIDTH - middle) * 2.0;
            let (at, anchor) = if bin.label.chars().count() as f64 * 6.5 > room {
                (WIDTH, Anchor::End)
            } else {
                (middle, Anchor::Middle)
            };
            svg.text("tick", (at, TOP + PLOT + 15.0), anchor, &bin.label);
        }
    }
    svg.line("axis", (LEFT, TOP + PLOT), (WIDTH - LEFT, TOP + PLOT));
    svg.text(
        "tick",
        (WIDTH / 2.0, TOP + PLOT + 34.0),
        Anchor::Middle,
        axis,
    );
    svg.finish("chart")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crowded_bins_name_only_some_of_them() {
        let bins = |number: u64| -> Vec<Bin> {
            (1..=number)
                .map(|value| Bin {
                    label: value.to_string(),
                    count: value,
                })
                .collect()
        };
        let few = histogram("t", "answers", &bins(4));
        assert_eq!(few.matches("class=\"value\"").count(), 4);
        assert_eq!(few.matches("class=\"tick\"").count(), 5);
        let many = histogram("t", "answers", &bins(60));
        assert_eq!(many.matches("class=\"value\"").count(), 1);
        assert!(many.contains(">60</text>"));
        assert!(many.matches("class=\"tick\"").count() < 20);
        let mut open = bins(59);
        open.push(Bin {
            label: "≥ 60".to_owned(),
            count: 1,
        });
        assert!(histogram("t", "answers", &open).contains("≥ 60</text>"));
    }
}
