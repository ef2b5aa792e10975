//! Numbers of one size, shown with the same decimals: those of a metric and of its differences.

use crate::metrics::Interval;

/// How many decimals the values of a metric deserve: one from 10 on and for nothing but zeros, two from 1 on, else three.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decimals(usize);

impl Decimals {
    /// Whole numbers.
    pub const NONE: Self = Self(0);

    /// For values up to the largest of these.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let largest = values
            .into_iter()
            .filter(|value| value.is_finite())
            .fold(0.0, |largest: f64, value| largest.max(value.abs()));
        Self(if largest >= 10.0 || largest == 0.0 {
            1
        } else if largest >= 1.0 {
            2
        } else {
            3
        })
    }

    /// `26.8`, `−0.3`; `–` for what is not a number.
    pub fn plain(self, value: f64) -> String {
        if !value.is_finite() {
            return "–".to_owned();
        }
        let text = format!("{value:.digits$}", digits = self.0);
        if is_zero(&text) {
            return text.trim_start_matches('-').to_owned();
        }
        // A minus sign is as wide as a plus; a hyphen is not.
        text.replace('-', "−")
    }

    /// `+4.1`, `−0.3`, `±0.0`.
    pub fn signed(self, value: f64) -> String {
        let text = self.plain(value);
        match value {
            _ if is_zero(&text) => format!("±{text}"),
            value if value > 0.0 => format!("+{text}"),
            _ => text,
        }
    }

    /// `+4.1 [3.2, 5.0]`.
    pub fn difference(self, mean: f64, interval: Interval) -> String {
        format!(
            "{} [{}, {}]",
            self.signed(mean),
            self.plain(interval.low),
            self.plain(interval.high)
        )
    }
}

fn is_zero(text: &str) -> bool {
    text.trim_matches(['-', '0', '.']).is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_a_size_have_the_same_decimals() {
        let f1 = Decimals::of([26.83, 30.7]);
        let interval = Interval {
            low: 3.2,
            high: 5.04,
        };
        assert_eq!(f1.difference(4.12, interval), "+4.1 [3.2, 5.0]");
        assert_eq!(
            [0.02, -0.3, f64::NAN].map(|v| f1.signed(v)),
            ["±0.0", "−0.3", "–"]
        );
        assert_eq!(Decimals::of([0.7123]).plain(0.7123), "0.712");
        assert_eq!(Decimals::of([3.456, f64::NAN]).plain(-3.456), "−3.46");
    }
}
