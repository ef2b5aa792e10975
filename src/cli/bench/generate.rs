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

    /// With an adapter of this rank on all linear layers, as `flow chat` and `generate` compute it: merged into a copy of the
    /// weights where there is memory for one
    #[arg(long, value_name = "R")]
    pub rank: Option<i64>,

    /// Keep the adapter's products beside the weights'
    #[arg(long, requires = "rank")]
    pub unmerged: bool,

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
    use super::Arguments;
    use crate::cli::bench::model;
    use crate::cli::bench::sheet::Sheet;
    use crate::cli::bench::spread::spread;
    use crate::cli::error::{CliError, Exit};
    use crate::cli::output::Output;
    use crate::lm::{Adapter, Decoder, GenerateBench, LoraConfig, SampleOptions, bench_generate};
    use crate::ui::seconds;

    pub fn run(arguments: &Arguments, output: &Output) -> Result<Exit, CliError> {
        let (config, mut decoder) = model::load(&arguments.model)?;
        let mut sheet = Sheet::new(decoder.placement().device, output);
        decoder.quantize(arguments.quant.quantization(), false)?;
        if let Some(rank) = arguments.rank {
            adapt(&mut decoder, rank, !arguments.unmerged)?;
        }
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
        let rate = |seconds: &f64| measured.tokens as f64 / seconds;
        let rates = spread(measured.seconds.iter().map(rate).collect());
        let prefill = measured.prefill_seconds.unwrap_or(0.0);
        // All rows at once: each step but the first, which the prompts give, is one of decoding.
        let step = (bench.rows == bench.batch && bench.new_tokens > 1)
            .then(|| (times[0] - prefill) / (bench.new_tokens - 1) as f64);
        for (name, number) in [
            ("batch", arguments.batch),
            ("rows", bench.rows),
            ("prompt", arguments.prompt),
            ("new_tokens", arguments.new_tokens),
            ("runs", arguments.runs),
        ] {
            sheet.json(name, number);
        }
        sheet.json("model", arguments.model.as_str());
        sheet.json("quant", arguments.quant.name());
        sheet.json("rank", arguments.rank);
        sheet.json("unmerged", arguments.unmerged);
        sheet.json("temperature", arguments.temperature);
        let counted = ", prompts counted in";
        sheet.rate(
            "new tokens/s",
            "tokens_per_second",
            rates,
            bench.runs,
            counted,
        );
        sheet.cost(times, measured.memory);
        sheet.json("prefill_seconds", prefill);
        sheet.row("prompts and first tokens", seconds(prefill));
        sheet.json("step_seconds", step);
        if let Some(step) = step {
            sheet.row("step", format!("{:.2} ms", step * 1e3));
        }
        sheet.print(arguments.json, output)
    }

    /// Gives the decoder an adapter that changes nothing, which takes as long as any other.
    fn adapt(decoder: &mut Decoder, r: i64, merged: bool) -> Result<(), CliError> {
        let config = LoraConfig {
            r,
            ..LoraConfig::default()
        };
        let adapter = Adapter::new(decoder, &config, 0, 1)?;
        match merged {
            true => adapter.install_for_inference(decoder)?,
            false => adapter.install(decoder, false)?,
        }
        Ok(())
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
