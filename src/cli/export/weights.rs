//! `flow export --merge` and `--gguf`: base and adapter as one model, and how far it is from the two.

use std::path::Path;

use super::{Arguments, Format};
use crate::cli::error::CliError;
use crate::cli::output::Output;
use crate::cli::trained::Trained;
use crate::config::display;
use crate::lm::{
    Adapter, DtypeChoice, GgufFormat, LanguageModel, LoadOptions, LogitDifference, Merged, Message,
    PromptLogits, Quantization, load_adapter, memory, prompt_logits, write_gguf,
    write_model_folder,
};
use crate::ui::bytes;

/// What is asked of both forms.
const QUESTIONS: [&str; 3] = [
    "What is a cyst?",
    "How do the stages of breast cancer differ?",
    "How is an infection treated?",
];

pub fn write(arguments: &Arguments, trained: &Trained, output: &Output) -> Result<(), CliError> {
    let base = trained.base(arguments.trained.offline)?;
    let merged = Merged::open(&base, &trained.adapter)?;
    let mut written: Vec<&Path> = Vec::new();
    if let Some(folder) = &arguments.merge {
        let size = write_model_folder(&merged, folder)?;
        output.tell(&format!(
            "merged into the base as stored, in bf16: {}",
            bytes(size)
        ));
        output.print(&display(folder))?;
        written.push(folder);
    }
    if let Some(file) = &arguments.gguf {
        let (format, name) = match arguments.gguf_format {
            Format::F16 => (GgufFormat::F16, "F16"),
            Format::Q8_0 => (GgufFormat::Q8_0, "Q8_0"),
        };
        let title = format!("{} tuned by {}", trained.base_name, trained.pipeline);
        let size = write_gguf(&merged, file, format, &title)?;
        output.tell(&format!(
            "merged into the base as stored, in {name}: {}",
            bytes(size)
        ));
        output.print(&display(file))?;
        written.push(file);
    }
    let weights: i64 = merged
        .tensors()
        .iter()
        .map(|(_, shape)| shape.iter().product::<i64>())
        .sum();
    if merged.template().is_none() {
        output.warning("the model has no chat template: its logits are not compared");
        return Ok(());
    }
    drop(merged);
    compare(trained, &base, &written, weights, output)
}

/// Says how far the logits of each of `written` are from those of base and adapter.
fn compare(
    trained: &Trained,
    base: &Path,
    written: &[&Path],
    weights: i64,
    output: &Output,
) -> Result<(), CliError> {
    let conversations: Vec<Vec<Message>> = QUESTIONS
        .iter()
        .map(|question| {
            let system = Some(&trained.system).filter(|system| !system.is_empty());
            let system = system.map(Message::system);
            system
                .into_iter()
                .chain([Message::user(*question)])
                .collect()
        })
        .collect();
    let options = LoadOptions {
        dtype: exact_where_it_fits(weights),
        ..LoadOptions::default()
    };
    let (reference, in_training) = {
        let mut model = LanguageModel::load(base, &options)?;
        let adapter = load_adapter(&trained.adapter, &model.decoder)?;
        adapter.install(&mut model.decoder, false)?;
        let reference = prompt_logits(&model, &conversations)?;
        (
            reference,
            rounded(trained, &mut model, &adapter, &conversations)?,
        )
    };
    let tell = |what: &str, logits: &PromptLogits| {
        output.tell(&format!(
            "{what}: {}",
            sentence(&LogitDifference::of(&reference, logits))
        ));
    };
    for path in written {
        let model = LanguageModel::load(path, &options)?;
        tell(
            &format!("`{}` against base and adapter", path.display()),
            &prompt_logits(&model, &conversations)?,
        );
    }
    if let Some(logits) = in_training {
        tell(
            &format!(
                "for comparison, the {} base of the training with the adapter",
                trained.quant
            ),
            &logits,
        );
    }
    Ok(())
}

/// The logits of the adapter on the base as it was rounded for training; none where it was not.
fn rounded(
    trained: &Trained,
    model: &mut LanguageModel,
    adapter: &Adapter,
    conversations: &[Vec<Message>],
) -> Result<Option<PromptLogits>, CliError> {
    let quantization = match trained.quant.as_str() {
        "nf4" => Quantization::Nf4,
        "int8" => Quantization::Int8,
        _ => return Ok(None),
    };
    Adapter::remove(&mut model.decoder);
    model.decoder.quantize(quantization, true)?;
    adapter.install(&mut model.decoder, false)?;
    Ok(Some(prompt_logits(model, conversations)?))
}

/// f32 where it takes less than half of the memory.
fn exact_where_it_fits(weights: i64) -> DtypeChoice {
    let placement = crate::lm::Placement::resolve(Default::default(), DtypeChoice::Auto);
    let free = placement
        .ok()
        .and_then(|placement| memory::available(placement.device));
    match free {
        Some(free) if weights.unsigned_abs().saturating_mul(4) < free / 2 => DtypeChoice::F32,
        _ => DtypeChoice::Auto,
    }
}

fn sentence(difference: &LogitDifference) -> String {
    format!(
        "logits differ by {:.2e} at most and {:.2e} on average, KL divergence {:.2e} nats, the likeliest token is the same at {:.1}% of {} positions",
        difference.largest,
        difference.mean,
        difference.divergence,
        100.0 * difference.agreement,
        difference.positions
    )
}
