//! `flow bench embed`: texts and tokens per second of a sentence encoder.

use std::path::PathBuf;

use clap::Args;

use super::generate::positive;

/// Measure sentence embeddings of given texts
#[derive(Debug, Args)]
pub struct Arguments {
    /// The folder of a model of the BERT family
    #[arg(long, value_name = "FOLDER")]
    pub model: PathBuf,

    /// A file with a text on each line
    #[arg(long, value_name = "FILE")]
    pub texts: PathBuf,

    /// Measured runs, after one that is not
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = positive)]
    pub runs: usize,

    /// Print the measurement as JSON
    #[arg(long)]
    pub json: bool,
}

#[cfg(feature = "torch")]
pub use measured::run;

#[cfg(feature = "torch")]
mod measured {
    use super::Arguments;
    use crate::cli::bench::sheet::Sheet;
    use crate::cli::bench::spread::{json_of, spread};
    use crate::cli::error::{CliError, Exit};
    use crate::cli::output::Output;
    use crate::lm::{Embedder, LoadOptions, bench_embed};
    use crate::ui::seconds;

    pub fn run(arguments: &Arguments, output: &Output) -> Result<Exit, CliError> {
        let text = fs_err::read_to_string(&arguments.texts)
            .map_err(|error| CliError::wrong(error.to_string(), "give a file of texts"))?;
        let texts: Vec<&str> = text.lines().collect();
        let embedder = Embedder::load(&arguments.model, &LoadOptions::default())?;
        let mut sheet = Sheet::new(embedder.placement().device, output);
        let measured = bench_embed(&embedder, &texts, arguments.runs)?;
        let per_second = |count: u64| {
            let rates = measured.seconds.iter().map(|time| count as f64 / time);
            spread(rates.collect())
        };
        sheet.json("model", arguments.model.display().to_string());
        sheet.json("texts", texts.len());
        sheet.json("tokens", measured.tokens);
        sheet.json("runs", arguments.runs);
        let (rates, runs) = (per_second(texts.len() as u64), arguments.runs);
        sheet.rate("texts/s", "texts_per_second", rates, runs, "");
        let rates = per_second(measured.tokens);
        sheet.rate("tokens/s", "tokens_per_second", rates, runs, "");
        sheet.cost(spread(measured.seconds.clone()), measured.memory);
        let tokenizing = spread(measured.tokenize_seconds.clone());
        sheet.json("tokenize_seconds", json_of(tokenizing));
        sheet.row("tokenising, part of it", seconds(tokenizing[0]));
        sheet.print(arguments.json, output)
    }
}
