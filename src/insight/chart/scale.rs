//! Axes: round tick values, and where values lie between two ends.

/// A linear axis from `low` to `high`, drawn from `start` to `end`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scale {
    pub low: f64,
    pub high: f64,
    pub start: f64,
    pub end: f64,
}

impl Scale {
    /// An axis that holds all finite values, with room where they are all the same.
    pub fn around(values: impl IntoIterator<Item = f64>, start: f64, end: f64) -> Self {
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values.into_iter().filter(|value| value.is_finite()) {
            (low, high) = (low.min(value), high.max(value));
        }
        if low > high {
            (low, high) = (0.0, 1.0);
        } else if low == high {
            let room = if low == 0.0 { 1.0 } else { low.abs() * 0.1 };
            (low, high) = (low - room, high + room);
        }
        Self {
            low,
            high,
            start,
            end,
        }
    }

    /// The same with ends at round values.
    pub fn rounded(self, ticks: usize) -> Self {
        let step = step(self.high - self.low, ticks);
        Self {
            low: (self.low / step + 1e-9).floor() * step,
            high: (self.high / step - 1e-9).ceil() * step,
            ..self
        }
    }

    pub fn at(self, value: f64) -> f64 {
        self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)
    }

    /// About so many round values on the axis, with their labels.
    pub fn ticks(self, count: usize) -> Vec<(f64, String)> {
        let step = step(self.high - self.low, count);
        let first = (self.low / step - 1e-9).ceil() as i64;
        let last = (self.high / step + 1e-9).floor() as i64;
        (first..=last)
            .map(|place| {
                let value = place as f64 * step;
                (value, label(value, step))
            })
            .collect()
    }
}

/// The round number (1, 2 or 5 times a power of ten) nearest above `span / count`.
fn step(span: f64, count: usize) -> f64 {
    let rough = span / count.max(1) as f64;
    let power = 10_f64.powf(rough.log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .find(|factor| rough <= factor * power * (1.0 + 1e-9))
        .unwrap_or(10.0);
    factor * power
}

/// A tick's value with as many decimals as the step needs.
fn label(value: f64, step: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    if step < 1e-3 {
        let text = format!("{value:.1e}").replace(".0e", "e");
        return text.replace('-', "−");
    }
    let digits = (-step.log10().floor()).max(0.0) as usize;
    if digits == 0 && value.abs() >= 10_000.0 {
        return crate::ui::count(value.abs() as u64);
    }
    format!("{value:.digits$}").replace('-', "−")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(low: f64, high: f64, count: usize) -> Vec<String> {
        let scale = Scale {
            low,
            high,
            start: 0.0,
            end: 1.0,
        };
        scale.ticks(count).into_iter().map(|tick| tick.1).collect()
    }

    #[test]
    fn ticks_are_round() {
        assert_eq!(labels(1.73, 2.41, 4), ["1.8", "2.0", "2.2", "2.4"]);
        assert_eq!(labels(0.0, 94.0, 4), ["0", "50"]);
        assert_eq!(labels(-3.0, 5.0, 4), ["−2", "0", "2", "4"]);
        assert_eq!(labels(0.0, 5e-5, 3), ["0", "2e−5", "4e−5"]);
        assert_eq!(labels(0.0, 16_407.0, 2), ["0", "10,000"]);
    }

    #[test]
    fn axes_hold_what_there_is() {
        let scale = Scale::around([2.0, f64::NAN, 2.0], 0.0, 100.0);
        assert_eq!((scale.low, scale.high), (1.8, 2.2));
        assert!((scale.at(2.0) - 50.0).abs() < 1e-9);
        let rounded = Scale::around([1.73, 2.41], 0.0, 1.0).rounded(4);
        assert!((rounded.low - 1.6).abs() < 1e-9 && (rounded.high - 2.6).abs() < 1e-9);
        let empty = Scale::around([], 0.0, 1.0);
        assert_eq!((empty.low, empty.high), (0.0, 1.0));
    }
}
