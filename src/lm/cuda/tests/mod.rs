//! Every kernel compiles without a GPU, and with one agrees with the plain tensor expression in higher precision.

mod adamw;
mod attention;
mod compiles;
mod compiles_generation;
mod cross_entropy;
mod decode;
mod dequantise;
mod dropout;
mod e4m3;
mod few_rows;
mod gemm;
mod inference;
mod lora;
mod norm;
mod rope;
mod rotate;
mod rounded;
mod sampler;
mod swiglu;
mod swiglu_grad;

use std::sync::{Mutex, PoisonError};

use tch::{Cuda, Device, Kind, Tensor};

/// The first GPU; None, said on the test's output, where there is none.
fn gpu() -> Option<Device> {
    crate::lm::device::prepare();
    if Cuda::is_available() {
        return Some(Device::Cuda(0));
    }
    #[expect(clippy::print_stderr, reason = "says that the test did not test")]
    {
        eprintln!("skipped: no GPU is visible");
    }
    None
}

/// Normal numbers in f32 on the CPU, the same ones for a seed.
fn standard_normal(shape: &[i64], seed: i64) -> Tensor {
    // One generator serves all threads.
    static GENERATOR: Mutex<()> = Mutex::new(());
    let _alone = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
    tch::manual_seed(seed);
    Tensor::randn(shape, (Kind::Float, Device::Cpu))
}

/// Normal numbers in bf16, the same ones for a seed.
fn normal(shape: &[i64], seed: i64, device: Device) -> Tensor {
    standard_normal(shape, seed)
        .to_device(device)
        .to_kind(Kind::BFloat16)
}

fn empty(shape: &[i64], device: Device) -> Tensor {
    Tensor::zeros(shape, (Kind::BFloat16, device))
}

fn wide(x: &Tensor) -> Tensor {
    x.to_kind(Kind::Double)
}

/// The largest difference is at most `tolerance` of the largest expected magnitude.
#[track_caller]
fn assert_near(found: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_eq!(found.size(), expected.size());
    let (found, expected) = (wide(found), wide(expected));
    let scale = expected.abs().max().double_value(&[]);
    let difference = (found - expected).abs().max().double_value(&[]);
    assert!(scale > 0.0, "the expected values are all zero");
    assert!(
        difference <= tolerance * scale,
        "differs by {difference}, the largest expected value is {scale}"
    );
}
