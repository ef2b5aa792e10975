//! Parity with the reference implementation: numbers made by transformers and friends with fixed seeds, one file per
//! fixture letter. The fixtures lie in `$FLOW_FIXTURES`, else in `tests/fixtures`; every shape comes from them.

mod a_logits;
mod b_lora;
mod c2_adamw8bit;
mod c_quantization;

use std::path::PathBuf;

use tch::{Device, Kind, Tensor};

use super::safetensors_file::SafetensorsFile;
use super::{Decoder, ModelConfig, Placement, Weights};

/// The model families that have fixtures: `tiny_<family>/` and `<letter>_<family>_….`.
const FAMILIES: [&str; 2] = ["qwen3", "llama"];

fn fixture(name: &str) -> PathBuf {
    let folder = std::env::var_os("FLOW_FIXTURES").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures")),
        PathBuf::from,
    );
    folder.join(name)
}

fn cpu(kind: Kind) -> Placement {
    super::device::prepare();
    Placement {
        device: Device::Cpu,
        kind,
    }
}

fn tensors(name: &str) -> impl Fn(&str) -> Tensor + use<> {
    let file = SafetensorsFile::open(&fixture(name)).unwrap();
    move |tensor| file.tensor(tensor).unwrap()
}

fn tiny(family: &str, kind: Kind) -> (ModelConfig, Decoder) {
    let folder = fixture(&format!("tiny_{family}"));
    let config = ModelConfig::from_hf(&folder.join("config.json")).unwrap();
    let weights = Weights::open(&folder).unwrap();
    let decoder = Decoder::load(&config, &weights, cpu(kind)).unwrap();
    (config, decoder)
}

fn ids(tensor: &Tensor) -> Vec<i64> {
    Vec::try_from(tensor.to_kind(Kind::Int64).flatten(0, -1)).unwrap()
}

#[track_caller]
fn assert_close(found: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_eq!(found.size(), expected.size());
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
    let differing = found
        .not_equal_tensor(expected)
        .sum(Kind::Int64)
        .int64_value(&[]);
    assert_eq!(differing, 0, "of {} elements", found.numel());
}
