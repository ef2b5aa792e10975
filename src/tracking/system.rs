//! What the machine is doing, in the names of W&B's own client (with `system.` in front).

use std::collections::BTreeMap;

use nvml_wrapper::Nvml;
use nvml_wrapper::enum_wrappers::device::TemperatureSensor;
use sysinfo::{Pid, ProcessesToUpdate, System};

use super::number::token;

pub struct Probe {
    system: System,
    own: Pid,
    /// `None` where there is no NVIDIA driver.
    nvml: Option<Nvml>,
}

impl Probe {
    pub fn new() -> Self {
        // CPU use is measured between two looks.
        let mut system = System::new();
        system.refresh_cpu_usage();
        system.refresh_memory();
        let nvml = Nvml::init()
            .inspect_err(|error| tracing::debug!("no GPU is watched: {error}"))
            .ok();
        Self {
            system,
            own: Pid::from_u32(std::process::id()),
            nvml,
        }
    }

    /// CPU and GPU use in percent, memory in percent, MB or bytes, temperature in °C, power in watts.
    pub fn sample(&mut self) -> BTreeMap<String, String> {
        let mut sample = BTreeMap::new();
        let mut put = |name: &str, value: f64| {
            sample.insert(format!("system.{name}"), token(round(value)));
        };
        let system = &mut self.system;
        system.refresh_cpu_usage();
        system.refresh_memory();
        system.refresh_processes(ProcessesToUpdate::Some(&[self.own]), false);
        for (index, cpu) in system.cpus().iter().enumerate() {
            put(
                &format!("cpu.{index}.cpu_percent"),
                f64::from(cpu.cpu_usage()),
            );
        }
        let total = system.total_memory() as f64;
        put(
            "memory_percent",
            100.0 * system.used_memory() as f64 / total,
        );
        put(
            "proc.memory.availableMB",
            megabytes(system.available_memory()),
        );
        if let Some(own) = system.process(self.own) {
            put("cpu", f64::from(own.cpu_usage()));
            put("proc.memory.rssMB", megabytes(own.memory()));
            put("proc.memory.percent", 100.0 * own.memory() as f64 / total);
        }
        if let Some(nvml) = &self.nvml {
            for index in 0..nvml.device_count().unwrap_or(0) {
                // What a device cannot tell is left out.
                let Ok(device) = nvml.device_by_index(index) else {
                    continue;
                };
                if let Ok(used) = device.utilization_rates() {
                    put(&format!("gpu.{index}.gpu"), f64::from(used.gpu));
                    put(&format!("gpu.{index}.memory"), f64::from(used.memory));
                }
                if let Ok(memory) = device.memory_info() {
                    let percent = 100.0 * memory.used as f64 / memory.total as f64;
                    put(&format!("gpu.{index}.memoryAllocated"), percent);
                    put(
                        &format!("gpu.{index}.memoryAllocatedBytes"),
                        memory.used as f64,
                    );
                }
                if let Ok(celsius) = device.temperature(TemperatureSensor::Gpu) {
                    put(&format!("gpu.{index}.temp"), f64::from(celsius));
                }
                if let Ok(milliwatts) = device.power_usage() {
                    put(
                        &format!("gpu.{index}.powerWatts"),
                        f64::from(milliwatts) / 1000.0,
                    );
                }
            }
        }
        sample
    }

    /// `wandb-metadata.json`: what the run's page shows of the machine.
    pub fn metadata(&self) -> serde_json::Map<String, serde_json::Value> {
        let gpus = self
            .nvml
            .as_ref()
            .map_or(0, |nvml| nvml.device_count().unwrap_or(0));
        let mut metadata = serde_json::Map::new();
        metadata.insert("os".into(), System::long_os_version().into());
        metadata.insert("host".into(), System::host_name().into());
        metadata.insert("cpu_count_logical".into(), self.system.cpus().len().into());
        metadata.insert(
            "memory".into(),
            serde_json::json!({ "total": self.system.total_memory().to_string() }),
        );
        if gpus > 0 {
            let name = self
                .nvml
                .as_ref()
                .and_then(|nvml| nvml.device_by_index(0).ok()?.name().ok());
            metadata.insert("gpu".into(), name.into());
            metadata.insert("gpu_count".into(), gpus.into());
        }
        metadata
    }
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / (1024.0 * 1024.0)
}

/// Two decimals are more than enough.
fn round(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_a_cpu_and_memory() {
        let sample = Probe::new().sample();
        let number = |name: &str| sample[name].parse::<f64>().unwrap();
        assert!((0.0..=100.0).contains(&number("system.memory_percent")));
        assert!((0.0..=100.0).contains(&number("system.cpu.0.cpu_percent")));
        assert!(number("system.proc.memory.rssMB") > 1.0);
    }
}
