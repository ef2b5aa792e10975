//! Tests of the program as users run it: files in, command line in, text and exit code out.

mod bad_input;
mod bench;
#[cfg(feature = "torch")]
mod chat;
mod commands;
mod compare;
mod curves;
mod data;
mod disk_and_clock;
#[cfg(feature = "torch")]
mod exports;
mod faults;
mod interruption;
#[cfg(feature = "torch")]
mod language_model;
mod matrix;
mod matrix_mistakes;
mod medquad;
mod pages;
mod provenance;
mod queries;
mod records;
mod remarks;
mod remote;
mod report;
mod secrets;
#[cfg(feature = "torch")]
mod serve;
mod shown;
mod slurm;
mod soak;
mod stages;
mod staleness;
mod support;
mod trace;
mod tracked_runs;
mod tracking;
mod workers;
