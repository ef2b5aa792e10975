//! The language model in memory: loaded once and kept for the next node that asks for the same.

use std::path::PathBuf;
use std::sync::Mutex;

use miette::Diagnostic;

use super::{Context, OpError};
use crate::lm::cuda::multiplies_e4m3;
use crate::lm::{
    DeviceChoice, LanguageModel, LmError, LoadOptions, Placement, Quantization, memory,
};

#[derive(PartialEq)]
struct Key {
    path: PathBuf,
    quant: String,
    dtype: String,
}

struct Loaded {
    key: Key,
    model: LanguageModel,
}

/// One model at a time: the next one may need the memory.
static SLOT: Mutex<Option<Loaded>> = Mutex::new(None);

/// The precision that a judge's weights get where the pipeline asks for `quant`. 8 bit is the form that the GPU multiplies
/// itself, which e4m3 is on those that have it: there it is twice as fast as bf16, while integers would first be decoded.
pub(super) fn judge_quant<'a>(
    context: &Context,
    quant: &'a str,
    dtype: &str,
) -> Result<&'a str, OpError> {
    let placement = Placement::resolve(DeviceChoice::Auto, dtype.parse()?)?;
    if quant == "int8" && multiplies_e4m3(placement) {
        context.info("8 bit is fp8 (e4m3, a scale per row) on this GPU");
        return Ok("fp8");
    }
    Ok(quant)
}

/// Runs `work` on the model that the param `param` names. A model whose use failed is not kept.
pub(super) fn with_model<T>(
    context: &Context,
    param: &str,
    quant: &str,
    dtype: &str,
    work: impl FnOnce(&mut LanguageModel) -> Result<T, OpError>,
) -> Result<T, OpError> {
    let path = context.model_path(param)?.to_owned();
    let key = Key {
        path,
        quant: quant.to_owned(),
        dtype: dtype.to_owned(),
    };
    let kept = SLOT
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
        .take();
    let mut loaded = match kept {
        Some(loaded) if loaded.key == key => loaded,
        other => {
            drop(other);
            let options = LoadOptions {
                dtype: dtype.parse()?,
                ..LoadOptions::default()
            };
            let started = std::time::Instant::now();
            let mut model = LanguageModel::load(&key.path, &options)?;
            let quantization = match quant {
                "nf4" => Quantization::Nf4,
                "int8" => Quantization::Int8,
                "fp8" => Quantization::Fp8,
                _ => Quantization::None,
            };
            model.decoder.quantize(quantization, packed(&model))?;
            let (seconds, placement) = (started.elapsed().as_secs_f64(), model.decoder.placement());
            context.info(format!(
                "loaded {} in {seconds:.1} s on {:?}, computing in {:?}",
                key.path.display(),
                placement.device,
                placement.kind
            ));
            Loaded { key, model }
        }
    };
    let result = work(&mut loaded.model)?;
    *SLOT.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(loaded);
    Ok(result)
}

/// Whether quantised weights stay packed: only where the decoded copy would not leave half of the memory free.
fn packed(model: &LanguageModel) -> bool {
    let decoded: u64 = model
        .decoder
        .layers()
        .iter()
        .flat_map(|layer| layer.linears())
        .map(|linear| linear.in_features() as u64 * linear.out_features() as u64 * 2)
        .sum();
    memory::available(model.decoder.placement().device).is_some_and(|free| decoded > free / 2)
}

impl From<LmError> for OpError {
    fn from(error: LmError) -> Self {
        match error {
            LmError::Cancelled => Self::Cancelled,
            error => Self::Failed {
                message: error.to_string(),
                help: error.help().map(|help| help.to_string()),
            },
        }
    }
}
