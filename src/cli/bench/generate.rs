//! `flow bench generate`: new tokens per second.

use clap::Args;

use super::quant::Quant;

/// Measure generation from random prompts
#[derive(Debug, Args)]
pub struct Arguments {
    /// The path of a model, or `random:qwen3-4b`, `random:smollm2-135m`: random weights of that shape
    #[arg(long, value_name = "MODEL", default_value = "random:qwen3-4b")]
    pub model: String,

    /// Sequences continued at a time
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub batch: usize,

    /// Prompts; as many as the batch if not given
    #[arg(long, value_name = "N")]
    pub rows: Option<usize>,

    /// Tokens of a prompt
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = positive)]
    pub prompt: usize,

    /// Tokens of a continuation
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = positive)]
    pub new_tokens: usize,

    /// How the weights are rounded
    #[arg(long, value_enum, default_value = "bf16")]
    pub quant: Quant,

    /// Draw tokens at this temperature instead of taking the best
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    pub temperature: f64,

    /// Measured runs, after one that is not
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = positive)]
    pub runs: usize,

    /// Print the measurement as JSON
    #[arg(long)]
    pub json: bool,
}

/// A number of at least 1.
pub fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("it must be at least 1".to_owned()),
        Ok(number) => Ok(number),
        Err(error) => Err(format!("{error}")),
    }
}

#[cfg(feature = "torch")]
pub use measured::run;

#[cfg(feature = "torch")]
mod measured {
    use serde_json::json;

    use super::Arguments;
    use crate::cli::bench::model;
    use crate::cli::bench::spread::{json_of, spread};
    use crate::cli::error::{CliError, Exit};
    use crate::cli::output::Output;
    use crate::lm::cuda::gpu_name;
    use crate::lm::{GenerateBench, SampleOptions, bench_generate};
    use crate::ui::{bytes, seconds, table};

    pub fn run(arguments: &Arguments, output: &Output) -> Result<Exit, CliError> {
        let (config, mut decoder) = model::load(&arguments.model)?;
        let name = gpu_name(decoder.placement().device);
        if name.is_none() {
            output.warning("there is no GPU: this measures the CPU");
        }
        decoder.quantize(arguments.quant.quantization(), false)?;
        let bench = GenerateBench {
            rows: arguments.rows.unwrap_or(arguments.batch),
            batch: arguments.batch,
            prompt: arguments.prompt,
            new_tokens: arguments.new_tokens,
            sample: SampleOptions {
                temperature: arguments.temperature,
                ..SampleOptions::default()
            },
            runs: arguments.runs,
        };
        let measured = bench_generate(&config, &decoder, &bench)?;
        let times = spread(measured.seconds.clone());
        let rates = spread(
            measured
                .seconds
                .iter()
                .map(|seconds| measured.tokens as f64 / seconds)
                .collect(),
        );
        let prefill = measured.prefill_seconds.unwrap_or(0.0);
        // All rows at once: each step but the first, which the prompts give, is one of decoding.
        let step = (bench.rows == bench.batch && bench.new_tokens > 1)
            .then(|| (times[0] - prefill) / (bench.new_tokens - 1) as f64);
        if arguments.json {
            output.print_json(&json!({
                "gpu": name,
                "model": arguments.model,
                "batch": arguments.batch,
                "rows": bench.rows,
                "prompt": arguments.prompt,
                "new_tokens": arguments.new_tokens,
                "quant": arguments.quant.name(),
                "temperature": arguments.temperature,
                "runs": arguments.runs,
                "tokens_per_second": json_of(rates),
                "run_seconds": json_of(times),
                "prefill_seconds": prefill,
                "step_seconds": step,
                "peak_allocated_bytes": measured.memory.map(|memory| memory.allocated),
                "peak_reserved_bytes": measured.memory.map(|memory| memory.reserved),
            }))?;
            return Ok(Exit::Ok);
        }
        let mut rows = vec![
            [
                "device".to_owned(),
                name.unwrap_or_else(|| "CPU".to_owned()),
            ],
            [
                "new tokens/s".to_owned(),
                format!(
                    "{:.0} ({:.0} to {:.0} over {} runs), prompts counted in",
                    rates[0], rates[1], rates[2], arguments.runs
                ),
            ],
            ["run".to_owned(), seconds(times[0])],
            ["prompts and first tokens".to_owned(), seconds(prefill)],
        ];
        if let Some(step) = step {
            rows.push(["step".to_owned(), format!("{:.2} ms", step * 1e3)]);
        }
        if let Some(memory) = measured.memory {
            rows.push([
                "peak memory".to_owned(),
                format!("{} in tensors", bytes(memory.allocated)),
            ]);
        }
        let rows: Vec<Vec<String>> = rows.into_iter().map(Vec::from).collect();
        output.print(&table(&["measured", ""], &rows, None))?;
        Ok(Exit::Ok)
    }
}

#[cfg(test)]
mod tests {
    use super::positive;

    #[test]
    fn counts_begin_at_one() {
        assert_eq!(positive("3"), Ok(3));
        assert!(positive("0").is_err());
        assert!(positive("many").is_err());
    }
}
