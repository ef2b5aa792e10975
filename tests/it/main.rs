//! Tests of the program as users run it: files in, command line in, text and exit code out.

mod bad_input;
mod bench;
mod commands;
mod data;
#[cfg(feature = "torch")]
mod exports;
mod faults;
mod interruption;
#[cfg(feature = "torch")]
mod language_model;
mod looking_back;
mod medquad;
mod remarks;
mod secrets;
#[cfg(feature = "torch")]
mod serve;
mod shown;
mod stages;
mod staleness;
mod support;
mod tracked_runs;
mod tracking;
