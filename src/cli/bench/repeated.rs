//! What `--deterministic` gives and costs: the measured steps once more, and once with the kernels that are faster.

use serde_json::{Value, json};

use super::train::rates;
use crate::lm::{Decoder, LmError, ModelConfig, TrainBench, TrainMeasurement, bench_train};

pub struct Repeated {
    /// Both runs left the same parameters and losses, bit for bit.
    same_bits: bool,
    /// Median tokens per second with the deterministic kernels over both runs, and without them.
    deterministic: f64,
    otherwise: f64,
}

impl Repeated {
    /// Compares `first`, a measurement of `bench`, with two more.
    ///
    /// # Errors
    /// Those of [`bench_train`].
    pub fn measure(
        model: &ModelConfig,
        decoder: &mut Decoder,
        bench: &TrainBench,
        first: &TrainMeasurement,
    ) -> Result<Self, LmError> {
        let second = bench_train(model, decoder, bench)?;
        let mut faster = TrainBench {
            profile: false,
            ..bench.clone()
        };
        faster.config.deterministic = false;
        let faster = bench_train(model, decoder, &faster)?;
        Ok(Self {
            same_bits: first.parameters.equal(&second.parameters) && first.losses == second.losses,
            deterministic: (rates(first)[0] + rates(&second)[0]) / 2.0,
            otherwise: rates(&faster)[0],
        })
    }

    /// By how much a step is longer than without deterministic kernels.
    fn cost(&self) -> f64 {
        self.otherwise / self.deterministic - 1.0
    }

    pub fn report(&self) -> Value {
        json!({
            "same_bits_twice": self.same_bits,
            "tokens_per_second_without": self.otherwise,
            "cost": self.cost(),
        })
    }

    pub fn text(&self) -> String {
        let bits = match self.same_bits {
            true => "the same bits in two runs",
            false => "OTHER BITS in a second run",
        };
        format!(
            "{bits}; a step takes {:+.1} % against {:.0} tokens/s without",
            100.0 * self.cost(),
            self.otherwise
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cost_is_that_of_a_step() {
        let repeated = Repeated {
            same_bits: true,
            deterministic: 800.0,
            otherwise: 1000.0,
        };
        assert_eq!(
            repeated.text(),
            "the same bits in two runs; a step takes +25.0 % against 1000 tokens/s without"
        );
    }
}
