//! Arguments that several commands take, and how help is painted.

use std::path::PathBuf;

use clap::Args;
use clap::builder::styling::{AnsiColor, Styles};

use super::folders::environment;
use crate::config::{Diagnostics, PipelineSpec, Request, load};
use crate::engine::Selection;

/// Which pipeline, seen how.
#[derive(Debug, Args)]
pub struct PipelineArguments {
    /// The pipeline file, such as `pipelines/medquad.yaml`
    #[arg(value_name = "PIPELINE")]
    pub pipeline: PathBuf,

    /// Lay this profile of the pipeline over it
    #[arg(long, value_name = "NAME")]
    pub profile: Option<String>,

    /// Set one value, such as `questions.with.limit=100`; wins over the profile [may be repeated]
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,

    /// Vary one value, such as `train.with.lora.r=8,16,32`: a variant for each, sharing all that is the same [may be repeated]
    #[arg(long, value_name = "KEY=VALUE,VALUE")]
    pub matrix: Vec<String>,
}

/// Which nodes.
#[derive(Debug, Args)]
pub struct SelectionArguments {
    /// Just this stage or node; what it reads must be cached [may be repeated]
    #[arg(long, value_name = "NODE")]
    pub only: Vec<String>,

    /// This stage or node and everything below it
    #[arg(long, value_name = "NODE")]
    pub from: Option<String>,

    /// This stage or node and everything it needs
    #[arg(long, value_name = "NODE")]
    pub until: Option<String>,

    /// Run this stage or node again even if it is cached; `all` for every one [may be repeated]
    #[arg(long, value_name = "NODE")]
    pub force: Vec<String>,
}

/// Which trained model.
#[derive(Debug, Args)]
pub struct TrainedArguments {
    /// An id, the beginning of one, `latest`, or `latest~1` for the one before
    #[arg(value_name = "RUN", default_value = "latest")]
    pub run: String,

    /// The node or stage that trained, where the run has several
    #[arg(long, value_name = "NODE")]
    pub node: Option<String>,

    /// Send nothing over the network
    #[arg(long)]
    pub offline: bool,
}

/// Which trained model is to speak, and how it computes.
#[derive(Debug, Args)]
pub struct SpeakerArguments {
    #[command(flatten)]
    pub trained: TrainedArguments,

    /// Precision of the arithmetic; auto is bf16 where the processor computes it natively
    #[arg(long, value_name = "DTYPE", default_value = "auto", value_parser = ["auto", "f32", "bf16"])]
    pub dtype: String,
}

impl PipelineArguments {
    pub fn load(&self) -> Result<PipelineSpec, Diagnostics> {
        let request = Request {
            path: self.pipeline.clone(),
            profile: self.profile.clone(),
            set: self.set.clone(),
            matrix: self.matrix.clone(),
        };
        load(&request, &environment)
    }
}

impl SelectionArguments {
    pub fn selection(&self) -> Selection {
        Selection {
            only: self.only.clone(),
            from: self.from.clone(),
            until: self.until.clone(),
            force: self.force.clone(),
        }
    }
}

pub fn style_of_help() -> Styles {
    Styles::styled()
        .header(AnsiColor::Green.on_default().bold())
        .usage(AnsiColor::Green.on_default().bold())
        .literal(AnsiColor::Cyan.on_default().bold())
        .placeholder(AnsiColor::Cyan.on_default())
}
