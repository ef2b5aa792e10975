//! What can go wrong in the runtime, each with the place, the cause and (as miette help) the next step.

use std::path::{Path, PathBuf};

use miette::Diagnostic;
use thiserror::Error;

#[derive(Debug, Error, Diagnostic)]
pub enum LmError {
    #[error("cannot read `{}`: {source}", path.display())]
    #[diagnostic(help("check that the path exists and is readable"))]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },

    #[error("cannot write `{}`: {source}", path.display())]
    #[diagnostic(help("check that the folder exists, is writable and has space"))]
    Write {
        path: PathBuf,
        source: std::io::Error,
    },

    /// The bytes do not follow the format their name promises.
    #[error("`{}` is not a usable {format} file: {reason}", path.display())]
    #[diagnostic(help("the file is damaged or incomplete; fetch or convert it again"))]
    Corrupt {
        path: PathBuf,
        format: &'static str,
        reason: String,
    },

    #[error("`{}` has no `{what}`", path.display())]
    #[diagnostic(help(
        "a model is a `.gguf` file, or a folder with `config.json`, `*.safetensors` and `tokenizer.json`"
    ))]
    Missing { path: PathBuf, what: String },

    #[error("tensor `{name}` in `{}` has shape {found:?}, expected {expected:?}", path.display())]
    #[diagnostic(help("the weights do not belong to this configuration; fetch the model again"))]
    Shape {
        path: PathBuf,
        name: String,
        expected: Vec<i64>,
        found: Vec<i64>,
    },

    /// The model is intact and asks for something this runtime does not compute.
    #[error("`{}` needs {what}, which is not supported", path.display())]
    #[diagnostic(help(
        "supported are llama and qwen3 decoders; choose another checkpoint or convert this one"
    ))]
    Unsupported { path: PathBuf, what: String },

    #[error("device `{device}` cannot be used: {reason}")]
    #[diagnostic(help("use `auto`, `cpu`, `cuda` or `cuda:N`"))]
    Device { device: String, reason: String },

    #[error("unknown dtype `{0}`")]
    #[diagnostic(help("use `auto`, `f32` or `bf16`"))]
    Dtype(String),

    #[error("chat template: {0}")]
    #[diagnostic(help(
        "check the messages (roles and their order) against what the model's template accepts"
    ))]
    Template(String),

    #[error("tokenizer of `{}`: {reason}", path.display())]
    Tokenizer { path: PathBuf, reason: String },

    #[error("{tokens} tokens do not fit into the context of {limit}")]
    #[diagnostic(help("shorten the prompt or allow fewer new tokens"))]
    Context { tokens: usize, limit: usize },

    #[error("the prompt cannot be used: {0}")]
    #[diagnostic(help("render the messages with the model's chat template and encode the result"))]
    Prompt(String),

    #[error("the allowed answers cannot be used: {0}")]
    #[diagnostic(help("give one or more answers that differ and are not empty"))]
    Choices(String),

    #[error("cannot train: {0}")]
    #[diagnostic(help("correct the settings or the data of the training"))]
    Training(String),

    /// Why frozen layers cannot be multiplied in 8-bit floating point.
    #[error("no training with `compute: fp8`: {0}")]
    #[diagnostic(help(
        "leave `compute` at `auto`; fp8 needs a GPU that multiplies e4m3 (compute capability 8.9 or newer), bf16, no DoRA, and memory for the frozen weights twice in 8 bits"
    ))]
    Fp8(String),

    #[error("checkpoint `{}` cannot be continued: {reason}", path.display())]
    #[diagnostic(help("remove it to train from the start"))]
    Checkpoint { path: PathBuf, reason: String },

    /// The loss or the gradient is infinite or not a number.
    #[error("step {step}: the {what} is {value} (rows {})", quoted(rows))]
    #[diagnostic(help(
        "lower the learning rate, or look at the rows; the last checkpoint is from before this step"
    ))]
    NonFinite {
        step: u64,
        what: &'static str,
        value: f64,
        rows: Vec<String>,
    },

    /// The caller asked to stop; what was done so far is saved.
    #[error("cancelled")]
    Cancelled,

    #[error("adapter `{}`: {reason}", path.display())]
    #[diagnostic(help("use an adapter that was trained from this model, or train it again"))]
    Adapter { path: PathBuf, reason: String },
    #[error("the model's probabilities are not numbers")]
    #[diagnostic(help("the weights or an adapter are damaged; with `bf16`, try `f32`"))]
    NotANumber,

    /// A kernel of our own that cannot be compiled or launched here.
    #[error("GPU kernel `{name}`: {reason}")]
    #[diagnostic(help(
        "the driver and the GPU must suit libtorch's CUDA version; `cpu` works without them"
    ))]
    Kernel { name: String, reason: String },

    /// An error raised inside libtorch, out of memory included (see [`LmError::is_out_of_memory`]).
    #[error("libtorch: {0}")]
    Torch(String),
}

/// The first few names in backticks.
fn quoted(names: &[String]) -> String {
    const SHOWN: usize = 8;
    let mut text: Vec<String> = names
        .iter()
        .take(SHOWN)
        .map(|name| format!("`{name}`"))
        .collect();
    if names.len() > SHOWN {
        text.push(format!("and {} more", names.len() - SHOWN));
    }
    text.join(", ")
}

impl LmError {
    pub fn read(path: &Path, source: std::io::Error) -> Self {
        Self::Read {
            path: path.to_owned(),
            source,
        }
    }

    pub fn write(path: &Path, source: std::io::Error) -> Self {
        Self::Write {
            path: path.to_owned(),
            source,
        }
    }

    pub fn adapter(path: &Path, reason: impl ToString) -> Self {
        Self::Adapter {
            path: path.to_owned(),
            reason: reason.to_string(),
        }
    }

    pub fn kernel(name: &str, reason: impl ToString) -> Self {
        Self::Kernel {
            name: name.to_owned(),
            reason: reason.to_string(),
        }
    }

    pub fn corrupt(path: &Path, format: &'static str, reason: impl ToString) -> Self {
        Self::Corrupt {
            path: path.to_owned(),
            format,
            reason: reason.to_string(),
        }
    }

    pub fn missing(path: &Path, what: impl ToString) -> Self {
        Self::Missing {
            path: path.to_owned(),
            what: what.to_string(),
        }
    }

    pub fn unsupported(path: &Path, what: impl ToString) -> Self {
        Self::Unsupported {
            path: path.to_owned(),
            what: what.to_string(),
        }
    }

    pub fn is_out_of_memory(&self) -> bool {
        // The last is cuBLAS's, which takes memory of its own.
        const SIGNS: [&str; 3] = [
            "out of memory",
            "can't allocate memory",
            "STATUS_ALLOC_FAILED",
        ];
        matches!(self, Self::Torch(text) if SIGNS.iter().any(|sign| text.contains(sign)))
    }
}

impl From<tch::TchError> for LmError {
    /// Keeps the first line: libtorch appends a C++ stack trace.
    fn from(error: tch::TchError) -> Self {
        let text = error.to_string();
        Self::Torch(text.lines().next().unwrap_or_default().to_owned())
    }
}
