//! `flow bench train`: tokens per second of training steps, and where their time goes.

use std::str::FromStr;

use clap::{Args, ValueEnum};

/// Measure training steps over random tokens
#[derive(Debug, Args)]
pub struct Arguments {
    /// The path of a model, or `random:qwen3-4b`, `random:smollm2-135m`: random weights of that shape
    #[arg(long, value_name = "MODEL", default_value = "random:qwen3-4b")]
    pub model: String,

    /// Sequences of a micro-batch
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub batch: usize,

    /// Tokens of a sequence, or the shortest and the longest
    #[arg(long, value_name = "N|A..B", default_value = "1024")]
    pub seq: Lengths,

    /// Micro-batches of an optimizer step
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub accumulate: usize,

    /// Measured steps, after two that are not
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub steps: u32,

    /// When layers are computed twice instead of keeping what their backward pass needs
    #[arg(long, value_enum, default_value = "auto")]
    pub recompute: Recompute,

    /// Of the adapter's input
    #[arg(long, value_name = "P", default_value_t = 0.05)]
    pub dropout: f64,

    /// Rank of the adapter, on all linear layers
    #[arg(long, value_name = "R", default_value_t = 16)]
    pub rank: i64,

    /// How the frozen weights are rounded
    #[arg(long, value_enum, default_value = "nf4")]
    pub quant: Quant,

    /// How the frozen weights are multiplied; fp8 needs a GPU that has it
    #[arg(long, value_enum, default_value = "auto")]
    pub compute: Compute,

    /// What tensors may take of the GPU's memory, in GiB
    #[arg(long, value_name = "GIB")]
    pub memory_limit: Option<f64>,

    /// Use only kernels whose results have the same bits every time; measures twice, and once without them
    #[arg(long)]
    pub deterministic: bool,

    /// Leave out the step that is measured part by part
    #[arg(long)]
    pub no_profile: bool,

    /// The GPU's dense bf16 operations per second, in 10^12, where it is not a known one
    #[arg(long, value_name = "TFLOPS")]
    pub peak: Option<f64>,

    /// Print the measurement as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Recompute {
    Auto,
    Full,
    None,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Quant {
    Nf4,
    Int8,
    Bf16,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Compute {
    Auto,
    Fp8,
}

/// The shortest and the longest sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lengths(pub usize, pub usize);

impl FromStr for Lengths {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.parse::<usize>().map_err(|error| error.to_string());
        let (shortest, longest) = match text.split_once("..") {
            None => (number(text)?, number(text)?),
            Some((shortest, longest)) => (number(shortest)?, number(longest)?),
        };
        match 2 <= shortest && shortest <= longest {
            true => Ok(Self(shortest, longest)),
            false => Err(
                "sequences have at least 2 tokens, the shortest no more than the longest"
                    .to_owned(),
            ),
        }
    }
}

#[cfg(feature = "torch")]
pub use measured::{rates, run};

#[cfg(feature = "torch")]
mod measured {
    use serde_json::{Value, json};

    use super::{Arguments, Compute, Quant, Recompute};
    use crate::cli::bench::model;
    use crate::cli::bench::repeated::Repeated;
    use crate::cli::bench::spread::spread;
    use crate::cli::error::{CliError, Exit};
    use crate::cli::output::Output;
    use crate::lm::cuda::gpu_name;
    use crate::lm::{
        LoraConfig, Quantization, TrainBench, TrainConfig, TrainMeasurement, bench_train,
    };
    use crate::ui::{bytes, count, seconds, table};

    pub fn run(arguments: &Arguments, output: &Output) -> Result<Exit, CliError> {
        let (config, mut decoder) = model::load(&arguments.model)?;
        let device = decoder.placement().device;
        let name = gpu_name(device);
        if name.is_none() {
            output.warning("there is no GPU: this measures the CPU");
        }
        decoder.quantize(
            match arguments.quant {
                Quant::Nf4 => Quantization::Nf4,
                Quant::Int8 => Quantization::Int8,
                Quant::Bf16 => Quantization::None,
            },
            name.is_some(),
        )?;
        let bench = bench(arguments);
        let measured = bench_train(&config, &mut decoder, &bench)?;
        let repeated = match arguments.deterministic {
            true => Some(Repeated::measure(&config, &mut decoder, &bench, &measured)?),
            false => None,
        };
        for line in &measured.log {
            output.tell(line);
        }
        let peak = arguments
            .peak
            .or_else(|| name.as_deref().and_then(known_peak));
        if arguments.json {
            let mut report = report(arguments, &measured, name.as_deref(), peak);
            report["deterministic"] = repeated.map_or(json!(false), |repeated| repeated.report());
            output.print_json(&report)?;
        } else {
            output.print(&text(&measured, repeated.as_ref(), name.as_deref(), peak))?;
        }
        Ok(Exit::Ok)
    }

    fn bench(arguments: &Arguments) -> TrainBench {
        TrainBench {
            lora: LoraConfig {
                r: arguments.rank,
                alpha: 2.0 * arguments.rank as f64,
                dropout: arguments.dropout,
                ..LoraConfig::default()
            },
            config: TrainConfig {
                batch_size: arguments.batch,
                gradient_accumulation: arguments.accumulate,
                recompute: match arguments.recompute {
                    Recompute::Auto => crate::lm::Recompute::Auto,
                    Recompute::Full => crate::lm::Recompute::Full,
                    Recompute::None => crate::lm::Recompute::None,
                },
                compute: match arguments.compute {
                    Compute::Auto => crate::lm::Compute::Auto,
                    Compute::Fp8 => crate::lm::Compute::Fp8,
                },
                memory_limit: arguments
                    .memory_limit
                    .map(|limit| (limit * f64::from(1 << 30)) as u64),
                deterministic: arguments.deterministic,
                ..TrainConfig::default()
            },
            lengths: (arguments.seq.0, arguments.seq.1),
            steps: arguments.steps as usize,
            profile: !arguments.no_profile,
        }
    }

    /// Dense bf16 operations per second in 10^12 by the makers' data sheets.
    fn known_peak(name: &str) -> Option<f64> {
        let peaks = [
            ("H200", 989.0),
            ("H100", 989.0),
            ("A100", 312.0),
            ("L40S", 362.0),
            ("RTX 4090", 165.0),
        ];
        let found = peaks.into_iter().find(|(part, _)| name.contains(part));
        found.map(|(_, peak)| peak)
    }

    /// Tokens per second of a step: median, least and most.
    pub fn rates(measured: &TrainMeasurement) -> [f64; 3] {
        let steps = measured.steps.iter();
        spread(
            steps
                .map(|(tokens, seconds)| *tokens as f64 / seconds)
                .collect(),
        )
    }

    fn times(measured: &TrainMeasurement) -> [f64; 3] {
        spread(measured.steps.iter().map(|(_, seconds)| *seconds).collect())
    }

    fn utilisation(measured: &TrainMeasurement, peak: Option<f64>) -> Option<f64> {
        peak.map(|peak| rates(measured)[0] * measured.flops_per_token / (peak * 1e12))
    }

    fn report(
        arguments: &Arguments,
        measured: &TrainMeasurement,
        name: Option<&str>,
        peak: Option<f64>,
    ) -> Value {
        let [rate, slowest, fastest] = rates(measured);
        let [median, shortest, longest] = times(measured);
        json!({
            "gpu": name,
            "model": arguments.model,
            "batch": arguments.batch,
            "seq": [arguments.seq.0, arguments.seq.1],
            "accumulate": arguments.accumulate,
            "rank": arguments.rank,
            "dropout": arguments.dropout,
            "quant": format!("{:?}", arguments.quant).to_lowercase(),
            "compute": format!("{:?}", arguments.compute).to_lowercase(),
            "recompute": format!("{:?}", arguments.recompute).to_lowercase(),
            "tokens_per_second": {"median": rate, "min": slowest, "max": fastest},
            "step_seconds": {"median": median, "min": shortest, "max": longest},
            "steps": measured.steps.len(),
            "losses": measured.losses,
            "peak_allocated_bytes": measured.memory.map(|memory| memory.allocated),
            "peak_reserved_bytes": measured.memory.map(|memory| memory.reserved),
            "tokens_per_pass": measured.max_tokens,
            "layers_kept": measured.kept,
            "flops_per_token": measured.flops_per_token,
            "peak_tflops": peak,
            "model_flop_utilisation": utilisation(measured, peak),
            "part_seconds": measured.parts.as_ref().map(|parts| {
                let parts: serde_json::Map<String, Value> =
                    parts.parts.iter().map(|(part, time)| (part.name().to_owned(), json!(time))).collect();
                parts
            }),
            "host_idle_seconds": measured.parts.as_ref().map(|parts| parts.idle),
        })
    }

    fn text(
        measured: &TrainMeasurement,
        repeated: Option<&Repeated>,
        name: Option<&str>,
        peak: Option<f64>,
    ) -> String {
        let [rate, slowest, fastest] = rates(measured);
        let [median, shortest, longest] = times(measured);
        let mut rows = vec![
            ["device".to_owned(), name.unwrap_or("CPU").to_owned()],
            [
                "tokens/s".to_owned(),
                format!(
                    "{rate:.0} ({slowest:.0} to {fastest:.0} over {} steps)",
                    measured.steps.len()
                ),
            ],
            [
                "step".to_owned(),
                format!(
                    "{} ({} to {})",
                    seconds(median),
                    seconds(shortest),
                    seconds(longest)
                ),
            ],
        ];
        if let Some(repeated) = repeated {
            rows.push(["deterministic".to_owned(), repeated.text()]);
        }
        if let Some(memory) = measured.memory {
            let (held, taken) = (bytes(memory.allocated), bytes(memory.reserved));
            rows.push([
                "peak memory".to_owned(),
                format!("{held} in tensors, {taken} taken by libtorch's allocator"),
            ]);
        }
        if let Some(kept) = measured.kept {
            let most = match measured.max_tokens {
                u64::MAX => "any number of".to_owned(),
                most => count(most),
            };
            rows.push([
                "passes".to_owned(),
                format!("of at most {most} tokens, {kept} layers computed once"),
            ]);
        }
        if let (Some(share), Some(peak)) = (utilisation(measured, peak), peak) {
            rows.push([
                "model FLOP utilisation".to_owned(),
                format!(
                    "{:.1} % = {rate:.0} tokens/s · {:.2} GFLOP/token ÷ {peak:.0} TFLOP/s (dense bf16)",
                    100.0 * share,
                    measured.flops_per_token / 1e9
                ),
            ]);
        }
        let rows: Vec<Vec<String>> = rows.into_iter().map(Vec::from).collect();
        let mut text = table(&["measured", ""], &rows, None);
        if let Some(parts) = &measured.parts {
            let whole = parts.parts.values().sum::<f64>() + parts.idle;
            let row = |name: &str, time: f64| {
                vec![
                    name.to_owned(),
                    seconds(time),
                    format!("{:.1} %", 100.0 * time / whole),
                ]
            };
            let mut rows: Vec<Vec<String>> = parts
                .parts
                .iter()
                .map(|(part, time)| row(part.name(), *time))
                .collect();
            rows.push(row("waiting for the host", parts.idle));
            text.push('\n');
            text.push_str(&table(
                &["part of a profiled step", "time", "share"],
                &rows,
                None,
            ));
        }
        text
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn known_gpus_have_their_data_sheets_peak() {
            assert_eq!(known_peak("NVIDIA H200"), Some(989.0));
            assert_eq!(known_peak("NVIDIA GeForce RTX 4090"), Some(165.0));
            assert_eq!(known_peak("GeForce 256"), None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_one_or_two_numbers() {
        assert_eq!("1024".parse(), Ok(Lengths(1024, 1024)));
        assert_eq!("64..512".parse(), Ok(Lengths(64, 512)));
        assert!("512..64".parse::<Lengths>().is_err());
        assert!("1".parse::<Lengths>().is_err());
        assert!("many".parse::<Lengths>().is_err());
    }
}
