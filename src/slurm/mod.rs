//! Nodes as Slurm jobs: `sbatch` starts them, the files of their folder say how they are, `squeue` says what these do not.
//!
//! Only the command line makes a [`Slurm`]; the engine sees an `Executor`. Slurm's commands are looked for on the `PATH`.

mod command;
mod executor;
mod here;
mod queue;
mod state;
mod submission;
mod tasks;

pub use executor::{Slurm, SlurmOptions};
pub use here::Here;
