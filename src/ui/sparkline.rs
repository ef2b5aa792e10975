//! A curve in one line of text, and one in a frame.

use super::number;

const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Values as bars from the lowest to the highest, in at most `width` characters; a stretch without a finite value is blank.
pub fn sparkline(values: &[f64], width: usize) -> String {
    let shown = stretches(values, width);
    let (low, high) = range(&shown);
    let level = |value: &f64| {
        if !value.is_finite() {
            return ' ';
        }
        let share = if high > low {
            (value - low) / (high - low)
        } else {
            0.5
        };
        LEVELS[(share * (LEVELS.len() - 1) as f64).round() as usize]
    };
    shown.iter().map(level).collect()
}

/// Means of equal stretches.
fn stretches(values: &[f64], width: usize) -> Vec<f64> {
    let count = values.len().min(width);
    let mean = |index: usize| {
        let stretch = &values[index * values.len() / count..(index + 1) * values.len() / count];
        let finite: Vec<f64> = stretch
            .iter()
            .copied()
            .filter(|value| value.is_finite())
            .collect();
        if finite.is_empty() {
            f64::NAN
        } else {
            finite.iter().sum::<f64>() / finite.len() as f64
        }
    };
    (0..count).map(mean).collect()
}

/// The lowest and the highest finite value.
fn range(values: &[f64]) -> (f64, f64) {
    values
        .iter()
        .filter(|value| value.is_finite())
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
            (low.min(*value), high.max(*value))
        })
}

/// A line through points in dots of Braille characters, two by four to a character, with the ends of both axes; `width` and `height` are
/// those of the frame in characters.
pub fn plot(points: &[(f64, f64)], width: usize, height: usize) -> String {
    let finite: Vec<_> = points
        .iter()
        .copied()
        .filter(|point| point.1.is_finite())
        .collect();
    let (left, right) = range(&finite.iter().map(|point| point.0).collect::<Vec<_>>());
    let (low, high) = range(&finite.iter().map(|point| point.1).collect::<Vec<_>>());
    if finite.is_empty() {
        return "no finite values\n".to_owned();
    }
    let place = |value: f64, low: f64, high: f64, most: usize| {
        let share = if high > low {
            (value - low) / (high - low)
        } else {
            0.5
        };
        (share * (most - 1) as f64).round() as usize
    };
    let mut cells = vec![vec![0_u8; width]; height];
    let mut mark = |column: usize, row: usize| {
        cells[row / 4][column / 2] |= DOTS[row % 4][column % 2];
    };
    let mut before: Option<(usize, usize)> = None;
    for (x, y) in &finite {
        let to = (
            place(*x, left, right, width * 2),
            height * 4 - 1 - place(*y, low, high, height * 4),
        );
        let from = before.replace(to).unwrap_or(to);
        let steps = to.0.abs_diff(from.0).max(to.1.abs_diff(from.1)).max(1);
        for step in 0..=steps {
            let between = |from: usize, to: usize| {
                let share = step as f64 / steps as f64;
                (from as f64 + (to as f64 - from as f64) * share).round() as usize
            };
            mark(between(from.0, to.0), between(from.1, to.1));
        }
    }
    let labels = [number(high), number(low)];
    let margin = labels
        .iter()
        .map(|label| label.chars().count())
        .max()
        .unwrap_or_default();
    let mut text = String::new();
    for (index, row) in cells.iter().enumerate() {
        let label = match index {
            0 => labels[0].as_str(),
            _ if index + 1 == height => labels[1].as_str(),
            _ => "",
        };
        let dots: String = row
            .iter()
            .map(|dots| char::from_u32(0x2800 + u32::from(*dots)).unwrap_or(' '))
            .collect();
        text.push_str(&format!(
            "{label:>margin$} │{}\n",
            dots.trim_end_matches('\u{2800}')
        ));
    }
    let (left, right) = (number(left), number(right));
    let gap = width.saturating_sub(left.len() + right.len());
    text.push_str(&format!(
        "{:margin$} └{}\n{:margin$}  {left}{}{right}\n",
        "",
        "─".repeat(width),
        "",
        " ".repeat(gap)
    ));
    text
}

/// The bits of a Braille character by row and column (Unicode, block U+2800).
const DOTS: [[u8; 2]; 4] = [[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_in_a_line() {
        let falling: Vec<f64> = (0..8).rev().map(f64::from).collect();
        assert_eq!(sparkline(&falling, 20), "█▇▆▅▄▃▂▁");
        assert_eq!(sparkline(&falling, 4), "█▆▃▁");
        assert_eq!(sparkline(&[1.0, f64::NAN, 1.0], 20), "▅ ▅");
        assert_eq!(sparkline(&[], 20), "");
    }

    #[test]
    fn a_curve_in_a_frame() {
        let points: Vec<_> = (1..=16)
            .map(|x| (f64::from(x), 1.0 / f64::from(x)))
            .collect();
        insta::assert_snapshot!(plot(&points, 12, 4), @r"
             1 │⢣
               │⠘⡄
               │⠀⢣
        0.0625 │⠀⠀⠉⠒⠢⠤⠤⢄⣀⣀⣀⣀
               └────────────
                1         16
        ");
        assert_eq!(plot(&[(1.0, f64::NAN)], 4, 2), "no finite values\n");
    }
}
