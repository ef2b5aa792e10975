//! Parity with the reference implementation: numbers made by transformers and friends with fixed seeds, one file per
//! fixture letter. The fixtures lie in `$FLOW_FIXTURES`, else in `tests/fixtures`; every shape comes from them.

mod a_logits;
mod b_lora;
mod bert;
mod c2_adamw8bit;
mod c_quantization;
mod choose;
mod cpu_attention;
mod d_invariance;
mod d_training;
mod f_generate;
mod g2_labels;
mod g_text;
mod gpu_engine;
mod gpu_streams;
mod h_smollm2;

use std::path::PathBuf;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use serde_json::Value;
use tch::{Cuda, Device, Kind, Tensor};

use super::safetensors_file::SafetensorsFile;
use super::{
    Decoder, DeviceChoice, DtypeChoice, LanguageModel, LoadOptions, ModelConfig, Placement, Weights,
};

/// Tests that run on the CPU, and on the first GPU where there is one. Each names a function of a device.
macro_rules! on_every_device {
    ($($check:ident),+ $(,)?) => {
        mod on_the_cpu {
            $(#[test]
            fn $check() {
                super::$check(tch::Device::Cpu);
            })+
        }
        mod where_there_is_a_gpu {
            $(#[test]
            fn $check() {
                if let Some(device) = crate::lm::parity::gpu() {
                    super::$check(device);
                }
            })+
        }
    };
}
use on_every_device;

/// The model families that have fixtures: `tiny_<family>/` and `<letter>_<family>_….`.
pub(super) const FAMILIES: [&str; 2] = ["qwen3", "llama"];

fn fixture(name: &str) -> PathBuf {
    let folder = std::env::var_os("FLOW_FIXTURES").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures")),
        PathBuf::from,
    );
    folder.join(name)
}

/// A fixture that is not part of the repository: in `$FLOW_FIXTURES`, else beside the repository, else nowhere.
fn shared_fixture(name: &str) -> Option<PathBuf> {
    let beside = PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../shared/fixtures/lm"
    ));
    [fixture(name), beside.join(name)]
        .into_iter()
        .find(|path| path.exists())
}

fn fixture_json(name: &str) -> Value {
    let path = fixture(name);
    let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&bytes).unwrap()
}

fn numbers_of(json: &Value) -> Vec<f64> {
    json.as_array()
        .unwrap()
        .iter()
        .map(|number| number.as_f64().unwrap())
        .collect()
}

fn ids_of(json: &Value) -> Vec<i64> {
    json.as_array()
        .unwrap()
        .iter()
        .map(|id| id.as_i64().unwrap())
        .collect()
}

/// A downloaded model.
fn model_path(name: &str) -> PathBuf {
    let home = std::env::var_os("FLOW_HOME").expect("FLOW_HOME is not set; run `make setup`");
    let path = PathBuf::from(home).join("models").join(name);
    assert!(
        path.exists(),
        "{} is missing; run `make setup`",
        path.display()
    );
    path
}

/// SmolLM2-135M-Instruct in f32 on the CPU, loaded once for all tests.
fn smollm2() -> MutexGuard<'static, LanguageModel> {
    smollm2_on(Device::Cpu)
}

/// The same on the CPU or the first GPU.
fn smollm2_on(device: Device) -> MutexGuard<'static, LanguageModel> {
    type Model = LazyLock<Mutex<LanguageModel>>;
    fn load(device: DeviceChoice) -> Mutex<LanguageModel> {
        let options = LoadOptions {
            device,
            dtype: DtypeChoice::F32,
        };
        let path = model_path("smollm2-135m-instruct.gguf");
        Mutex::new(LanguageModel::load(&path, &options).unwrap())
    }
    static ON_CPU: Model = LazyLock::new(|| load(DeviceChoice::Cpu));
    static ON_GPU: Model = LazyLock::new(|| load(DeviceChoice::Cuda(0)));
    let model = if device.is_cuda() { &ON_GPU } else { &ON_CPU };
    model.lock().unwrap_or_else(PoisonError::into_inner)
}

fn at(device: Device, kind: Kind) -> Placement {
    super::device::prepare();
    Placement { device, kind }
}

fn cpu(kind: Kind) -> Placement {
    at(Device::Cpu, kind)
}

fn tensors(name: &str) -> impl Fn(&str) -> Tensor + use<> {
    let file = SafetensorsFile::open(&fixture(name)).unwrap();
    move |tensor| file.tensor(tensor).unwrap()
}

/// The first GPU; None, said on the test's output, where there is none.
fn gpu() -> Option<Device> {
    super::device::prepare();
    if Cuda::is_available() {
        return Some(Device::Cuda(0));
    }
    #[expect(clippy::print_stderr, reason = "says that the test did not test")]
    {
        eprintln!("skipped: no GPU is visible");
    }
    None
}

fn tiny(family: &str, kind: Kind) -> (ModelConfig, Decoder) {
    tiny_at(family, cpu(kind))
}

/// The tiny model of a family, anywhere.
pub(super) fn tiny_at(family: &str, placement: Placement) -> (ModelConfig, Decoder) {
    let folder = fixture(&format!("tiny_{family}"));
    let config = ModelConfig::from_hf(&folder.join("config.json")).unwrap();
    let weights = Weights::open(&folder).unwrap();
    let decoder = Decoder::load(&config, &weights, placement).unwrap();
    (config, decoder)
}

fn ids(tensor: &Tensor) -> Vec<i64> {
    Vec::try_from(tensor.to_kind(Kind::Int64).flatten(0, -1)).unwrap()
}

#[track_caller]
fn assert_close(found: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_eq!(found.size(), expected.size());
    let found = found.to_device(expected.device());
    let difference = (found.to_kind(Kind::Float) - expected.to_kind(Kind::Float))
        .abs()
        .max();
    let difference = difference.double_value(&[]);
    assert!(
        difference <= tolerance,
        "differs by {difference}, allowed {tolerance}"
    );
}

/// Bitwise equality of value, shape and kind.
#[track_caller]
fn assert_same(found: &Tensor, expected: &Tensor) {
    assert_eq!(found.size(), expected.size());
    assert_eq!(found.kind(), expected.kind());
    let found = found.to_device(expected.device());
    let differing = found
        .not_equal_tensor(expected)
        .sum(Kind::Int64)
        .int64_value(&[]);
    assert_eq!(differing, 0, "of {} elements", found.numel());
}
