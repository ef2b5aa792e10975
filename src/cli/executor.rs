//! `--executor`: where nodes run that are worth a machine of their own.

use std::path::PathBuf;
use std::sync::Arc;

use super::error::CliError;
use super::folders::environment;
use crate::config::{EXECUTORS, PipelineSpec};
use crate::engine::Executor;
use crate::slurm::{Here, Slurm};

/// The executor of a run.
#[derive(Debug, Clone)]
pub enum Chosen {
    Local { programs: PathBuf },
    Slurm(Slurm),
}

impl Chosen {
    /// What the command line says, or else the pipeline.
    pub fn of(asked: Option<&str>, spec: &PipelineSpec, warn: fn(&str)) -> Result<Self, CliError> {
        let settings = spec.executor.clone().unwrap_or_default();
        let name = asked.or(settings.uses.as_deref()).unwrap_or(EXECUTORS[0]);
        let program = std::env::current_exe().map_err(|error| {
            CliError::failed(format!("the place of `flow` is not known: {error}"), None)
        })?;
        let folder = program.parent().unwrap_or(&program).to_owned();
        if name != "slurm" {
            return Ok(Self::Local { programs: folder });
        }
        Ok(Self::Slurm(Slurm::new(settings.slurm, folder, warn)))
    }

    pub fn executor(&self) -> Arc<dyn Executor> {
        match self {
            Self::Local { programs } => Arc::new(Here {
                programs: programs.clone(),
                visible: environment("CUDA_VISIBLE_DEVICES"),
            }),
            Self::Slurm(slurm) => Arc::new(slurm.clone()),
        }
    }

    /// For a process that ends at once.
    pub fn abandon(&self) {
        if let Self::Slurm(slurm) = self {
            slurm.abandon();
        }
    }
}
