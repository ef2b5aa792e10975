//! `flow bench judge`: prompt tokens per second, and how often a rounded judge chooses as the unrounded one.

use std::path::PathBuf;

use clap::Args;

use super::generate::positive;
use super::quant::Quant;

/// Measure the judge over random prompts
#[derive(Debug, Args)]
pub struct Arguments {
    /// The path of a model, or `random:qwen3-4b`, `random:smollm2-135m`: random weights of that shape
    #[arg(long, value_name = "MODEL", default_value = "random:qwen3-4b")]
    pub model: String,

    /// Prompts of a run
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = positive)]
    pub batch: usize,

    /// Tokens of a prompt that are its own
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = positive)]
    pub prompt: usize,

    /// Tokens before those that all prompts share
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub prefix: usize,

    /// How the weights are rounded
    #[arg(long, value_enum, default_value = "bf16")]
    pub quant: Quant,

    /// Measured runs, after one that is not
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = positive)]
    pub runs: usize,

    /// Instead of the speed, compare the choices with those of the unrounded weights on the prompts of this file; each
    /// line is like {"system": "…", "user": "…", "choices": [0, 1]}
    #[arg(long, value_name = "FILE")]
    pub agree: Option<PathBuf>,

    /// Print the measurement as JSON
    #[arg(long)]
    pub json: bool,
}

#[cfg(feature = "torch")]
pub use measured::run;

#[cfg(feature = "torch")]
mod measured {
    use std::path::Path;

    use serde::Deserialize;
    use serde_json::json;

    use super::Arguments;
    use crate::cli::bench::model;
    use crate::cli::bench::sheet::Sheet;
    use crate::cli::bench::spread::{json_of, spread};
    use crate::cli::error::{CliError, Exit};
    use crate::cli::output::Output;
    use crate::lm::cuda::gpu_name;
    use crate::lm::{
        JudgeBench, LanguageModel, LoadOptions, Message, Question, bench_judge, judge_agreement,
    };

    pub fn run(arguments: &Arguments, output: &Output) -> Result<Exit, CliError> {
        if let Some(prompts) = &arguments.agree {
            return agree(arguments, prompts, output);
        }
        let (config, mut decoder) = model::load(&arguments.model)?;
        let mut sheet = Sheet::new(decoder.placement().device, output);
        decoder.quantize(arguments.quant.quantization(), false)?;
        let bench = JudgeBench {
            rows: arguments.batch,
            prompt: arguments.prompt,
            prefix: arguments.prefix,
            runs: arguments.runs,
        };
        let measured = bench_judge(&config, &decoder, &bench)?;
        let times = spread(measured.seconds.clone());
        let rate =
            |tokens: f64| spread(measured.seconds.iter().map(|time| tokens / time).collect());
        let rates = rate(measured.tokens as f64);
        let reused = (bench.rows * bench.prefix) as f64;
        let with_reused = rate(measured.tokens as f64 + reused);
        let prompts = arguments.batch as f64 / times[0];
        for (name, number) in [
            ("batch", arguments.batch),
            ("prompt", arguments.prompt),
            ("prefix", arguments.prefix),
            ("runs", arguments.runs),
        ] {
            sheet.json(name, number);
        }
        sheet.json("model", arguments.model.as_str());
        sheet.json("quant", arguments.quant.name());
        sheet.rate(
            "computed tokens/s",
            "tokens_per_second",
            rates,
            bench.runs,
            "",
        );
        let field = "tokens_per_second_with_reused_prefix";
        sheet.json(field, json_of(with_reused));
        if bench.prefix > 0 {
            let text = format!("{:.0}", with_reused[0]);
            sheet.row("tokens/s, the shared prefix counted in", text);
        }
        sheet.json("prompts_per_second", prompts);
        sheet.row("prompts/s", format!("{prompts:.1}"));
        sheet.cost(times, measured.memory);
        sheet.print(arguments.json, output)
    }

    /// A line of the file of prompts.
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Prompt {
        #[serde(default)]
        system: Option<String>,
        user: String,
        choices: Vec<i64>,
    }

    fn agree(arguments: &Arguments, prompts: &Path, output: &Output) -> Result<Exit, CliError> {
        let mut model = LanguageModel::load(Path::new(&arguments.model), &LoadOptions::default())?;
        let questions = questions(&model, prompts)?;
        let quantization = arguments.quant.quantization();
        let end = model.end_of_turn();
        let found = judge_agreement(
            &model.config,
            &mut model.decoder,
            end,
            &questions,
            |decoder| decoder.quantize(quantization, false),
        )?;
        let share = found.same as f64 / found.questions.max(1) as f64;
        if arguments.json {
            output.print_json(&json!({
                "gpu": gpu_name(model.decoder.placement().device),
                "model": arguments.model,
                "quant": arguments.quant.name(),
                "prompts": found.questions,
                "same_choice": found.same,
                "agreement": share,
                "largest_probability_difference": found.largest_difference,
            }))?;
        } else {
            output.print(&format!(
                "{} of {} choices ({:.2} %) are those of the unrounded weights; probabilities differ by at most {:.3}\n",
                found.same,
                found.questions,
                100.0 * share,
                found.largest_difference
            ))?;
        }
        Ok(Exit::Ok)
    }

    fn questions(model: &LanguageModel, path: &Path) -> Result<Vec<Question>, CliError> {
        let text = fs_err::read_to_string(path)
            .map_err(|error| CliError::wrong(error.to_string(), "give a file of judge prompts"))?;
        let lines = text
            .lines()
            .enumerate()
            .filter(|(_, line)| !line.trim().is_empty());
        lines
            .map(|(number, line)| {
                let prompt: Prompt = serde_json::from_str(line).map_err(|error| {
                    CliError::wrong(
                        format!("{}:{}: {error}", path.display(), number + 1),
                        "each line is like {\"system\": \"…\", \"user\": \"…\", \"choices\": [0, 1]}",
                    )
                })?;
                let system = prompt.system.iter().map(Message::system);
                let messages: Vec<Message> = system.chain([Message::user(&prompt.user)]).collect();
                let encode = |text: &str| model.tokenizer.encode(text);
                Ok(Question {
                    prompt: encode(&model.render(&messages, true)?)?,
                    answers: prompt
                        .choices
                        .iter()
                        .map(|choice| encode(&choice.to_string()))
                        .collect::<Result<_, _>>()?,
                })
            })
            .collect()
    }
}
