//! What a benchmark of inference prints: a table for people, or JSON.

use serde_json::{Map, Value};
use tch::Device;

use super::spread::json_of;
use crate::cli::error::{CliError, Exit};
use crate::cli::output::Output;
use crate::lm::cuda::{MemoryPeak, gpu_name};
use crate::ui::{bytes, seconds, table};

/// A measurement as it is filled in.
pub struct Sheet {
    rows: Vec<Vec<String>>,
    json: Map<String, Value>,
}

impl Sheet {
    /// Begins with the device, and says where that is no GPU.
    pub fn new(device: Device, output: &Output) -> Self {
        let gpu = gpu_name(device);
        if gpu.is_none() {
            output.warning("there is no GPU: this measures the CPU");
        }
        let mut sheet = Self {
            rows: Vec::new(),
            json: Map::new(),
        };
        sheet.json("gpu", gpu.clone());
        sheet.row("device", gpu.unwrap_or_else(|| "CPU".to_owned()));
        sheet
    }

    /// A line of the table.
    pub fn row(&mut self, name: &str, value: impl Into<String>) {
        self.rows.push(vec![name.to_owned(), value.into()]);
    }

    /// A field of the JSON.
    pub fn json(&mut self, name: &str, value: impl Into<Value>) {
        self.json.insert(name.to_owned(), value.into());
    }

    /// A rate, median and spread of `runs`: one field, one line that ends with `more`.
    pub fn rate(&mut self, name: &str, field: &str, rates: [f64; 3], runs: usize, more: &str) {
        let [median, low, high] = rates;
        self.json(field, json_of(rates));
        self.row(
            name,
            format!("{median:.0} ({low:.0} to {high:.0} over {runs} runs){more}"),
        );
    }

    /// The time of a run, and the most memory.
    pub fn cost(&mut self, times: [f64; 3], memory: Option<MemoryPeak>) {
        self.json("run_seconds", json_of(times));
        self.row("run", seconds(times[0]));
        self.json(
            "peak_allocated_bytes",
            memory.map(|memory| memory.allocated),
        );
        self.json("peak_reserved_bytes", memory.map(|memory| memory.reserved));
        if let Some(memory) = memory {
            let peak = bytes(memory.allocated);
            self.row("peak memory", format!("{peak} in tensors"));
        }
    }

    /// Prints it.
    ///
    /// # Errors
    /// Where the output is closed.
    pub fn print(self, as_json: bool, output: &Output) -> Result<Exit, CliError> {
        match as_json {
            true => output.print_json(&Value::Object(self.json))?,
            false => output.print(&table(&["measured", ""], &self.rows, None))?,
        }
        Ok(Exit::Ok)
    }
}
