//! Percentile bootstrap intervals of a mean and of a paired difference (Efron & Tibshirani, 1993, chapter 13).

use rayon::prelude::*;

/// The bounds of a confidence interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    pub low: f64,
    pub high: f64,
}

/// The arithmetic mean; 0 for no values.
pub fn mean(values: &[f64]) -> f64 {
    if values.is_empty() {
        0.0
    } else {
        values.iter().sum::<f64>() / values.len() as f64
    }
}

/// The interval that holds the mean with probability `confidence` (0.95), from `resamples` draws with replacement.
///
/// The same seed and number of values draw the same rows, so two scores of the same rows are resampled alike.
/// `None` without values or resamples.
pub fn mean_interval(
    values: &[f64],
    resamples: usize,
    confidence: f64,
    seed: u64,
) -> Option<Interval> {
    if values.is_empty() || resamples == 0 {
        return None;
    }
    let resample = |index: usize| {
        let mut rng = SplitMix64::stream(seed, index as u64);
        let total: f64 = (0..values.len())
            .map(|_| values[rng.below(values.len())])
            .sum();
        total / values.len() as f64
    };
    let mut means: Vec<f64> = (0..resamples).into_par_iter().map(resample).collect();
    means.sort_by(f64::total_cmp);
    let tail = (1.0 - confidence.clamp(0.0, 1.0)) / 2.0;
    Some(Interval {
        low: quantile(&means, tail),
        high: quantile(&means, 1.0 - tail),
    })
}

/// The mean of `after - before` over the same rows, with its interval; 0 is outside where the change is significant.
///
/// `None` if the rows do not pair up or there are none.
pub fn paired_difference(
    before: &[f64],
    after: &[f64],
    resamples: usize,
    confidence: f64,
    seed: u64,
) -> Option<(f64, Interval)> {
    if before.len() != after.len() {
        return None;
    }
    let differences: Vec<f64> = before
        .iter()
        .zip(after)
        .map(|(before, after)| after - before)
        .collect();
    let interval = mean_interval(&differences, resamples, confidence, seed)?;
    Some((mean(&differences), interval))
}

/// Linear interpolation between the closest ranks of sorted values.
fn quantile(sorted: &[f64], at: f64) -> f64 {
    let rank = at * (sorted.len() - 1) as f64;
    let (below, above) = (rank.floor() as usize, rank.ceil() as usize);
    sorted[below] + (sorted[above] - sorted[below]) * (rank - rank.floor())
}

/// SplitMix64 (Steele, Lea & Flood, 2014): small, and every resample has a stream of its own.
struct SplitMix64(u64);

impl SplitMix64 {
    fn stream(seed: u64, index: u64) -> Self {
        let mut outer = Self(seed ^ index.wrapping_mul(0xd134_2543_de82_ef95));
        Self(outer.next())
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound` by multiplication and shift; the bias is below bound / 2⁶⁴.
    fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next()) * bound as u128) >> 64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(count: usize, mut of: impl FnMut(usize) -> f64) -> Vec<f64> {
        (0..count).map(&mut of).collect()
    }

    #[test]
    fn interval_has_the_width_that_theory_gives() {
        let mut rng = SplitMix64(7);
        let values = sample(2000, |_| f64::from(u8::from(rng.below(10) < 3)));
        let interval = mean_interval(&values, 2000, 0.95, 1).unwrap();
        let p = mean(&values);
        let half = 1.96 * (p * (1.0 - p) / 2000.0).sqrt();
        assert!(
            (interval.low - (p - half)).abs() < 0.15 * half,
            "{interval:?} around {p} ± {half}"
        );
        assert!(
            (interval.high - (p + half)).abs() < 0.15 * half,
            "{interval:?} around {p} ± {half}"
        );
    }

    #[test]
    fn seed_decides() {
        let values = sample(100, |i| i as f64);
        assert_eq!(
            mean_interval(&values, 200, 0.95, 1),
            mean_interval(&values, 200, 0.95, 1)
        );
        assert_ne!(
            mean_interval(&values, 200, 0.95, 1),
            mean_interval(&values, 200, 0.95, 2)
        );
    }

    #[test]
    fn pairing_cancels_what_rows_have_in_common() {
        let mut rng = SplitMix64(3);
        let before = sample(500, |_| rng.below(100) as f64);
        let after: Vec<f64> = before.iter().map(|score| score + 1.0).collect();
        let (difference, interval) = paired_difference(&before, &after, 500, 0.95, 1).unwrap();
        assert!((difference - 1.0).abs() < 1e-9);
        assert!((interval.low - 1.0).abs() < 1e-9 && (interval.high - 1.0).abs() < 1e-9);
        assert_eq!(paired_difference(&before, &after[1..], 500, 0.95, 1), None);
    }

    #[test]
    fn edges() {
        assert_eq!(mean_interval(&[], 100, 0.95, 1), None);
        assert_eq!(
            mean_interval(&[2.0], 100, 0.95, 1),
            Some(Interval {
                low: 2.0,
                high: 2.0
            })
        );
        assert_eq!(quantile(&[0.0, 10.0], 0.25), 2.5);
    }
}
