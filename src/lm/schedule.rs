//! The learning rate of each step.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

/// How the learning rate falls after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// Half a cosine, from the peak to zero.
    #[default]
    Cosine,
    /// A straight line, from the peak to zero.
    Linear,
    Constant,
}

/// A [`Schedule`] fitted to a run.
#[derive(Clone, Copy, Debug)]
pub struct LearningRate {
    pub peak: f64,
    pub schedule: Schedule,
    pub warmup_steps: u64,
    pub total_steps: u64,
}

impl LearningRate {
    /// The rate of `step`, counted from 1, in the convention of transformers: it is the multiplier after `step - 1`
    /// scheduler steps, so that with a warm-up the first step has rate 0.
    pub fn at(&self, step: u64) -> f64 {
        let done = step.saturating_sub(1);
        if done < self.warmup_steps {
            return self.peak * done as f64 / self.warmup_steps as f64;
        }
        let remaining = self.total_steps.saturating_sub(self.warmup_steps).max(1);
        let progress = (done - self.warmup_steps) as f64 / remaining as f64;
        let factor = match self.schedule {
            Schedule::Cosine => 0.5 * (1.0 + (PI * progress).cos()),
            Schedule::Linear => 1.0 - progress,
            Schedule::Constant => 1.0,
        };
        self.peak * factor.max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warms_up_from_zero_and_ends_near_zero() {
        let rate = LearningRate {
            peak: 1.0,
            schedule: Schedule::Cosine,
            warmup_steps: 2,
            total_steps: 6,
        };
        let rates: Vec<f64> = (1..=7)
            .map(|step| (rate.at(step) * 1e4).round() / 1e4)
            .collect();
        assert_eq!(rates, [0.0, 0.5, 1.0, 0.8536, 0.5, 0.1464, 0.0]);
    }

    #[test]
    fn without_warm_up_starts_at_the_peak() {
        let rate = LearningRate {
            peak: 2.0,
            schedule: Schedule::Linear,
            warmup_steps: 0,
            total_steps: 2,
        };
        assert_eq!([rate.at(1), rate.at(2)], [2.0, 1.0]);
    }
}
