//! all-MiniLM-L6-v2 against transformers.

use tch::Device;

use super::{model_path, on_every_device};
use crate::lm::{DeviceChoice, DtypeChoice, Embedder, LmError, LoadOptions};

/// Texts with the first dimensions of their vectors and all their inner products, from transformers 5.23 in f32.
const TEXTS: [&str; 3] = [
    "What are the symptoms of type 2 diabetes?",
    "How is high blood sugar recognised?",
    "Café crème, naïve: the Eiffel Tower is in Paris.",
];
const FIRST: [[f32; 4]; 3] = [
    [0.046_770_41, -0.018_224_14, -0.020_196_91, 0.105_180_92],
    [-0.026_781_39, 0.039_044_03, -0.100_838_92, -0.016_920_96],
    [0.079_226_27, 0.001_899_79, 0.042_465_7, 0.002_861_17],
];
const PRODUCTS: [(usize, usize, f32); 3] = [
    (0, 1, 0.464_147_75),
    (0, 2, -0.034_988_52),
    (1, 2, -0.000_215_09),
];

fn embedder(device: Device, dtype: DtypeChoice) -> Embedder {
    let device = match device {
        Device::Cuda(index) => DeviceChoice::Cuda(index),
        _ => DeviceChoice::Cpu,
    };
    Embedder::load(
        &model_path("all-minilm-l6-v2"),
        &LoadOptions { device, dtype },
    )
    .unwrap()
}

fn embed<S: AsRef<str> + Sync>(embedder: &Embedder, texts: &[S]) -> Vec<Vec<f32>> {
    embedder
        .embed(texts, &mut |_| Ok::<_, LmError>(()))
        .unwrap()
}

fn product(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Texts of many lengths, the longest cut.
fn many() -> Vec<String> {
    let word = |at: usize| ["diabetes", "is", "rare", "insulin", "x", "bloodsugar"][at % 6];
    (0..120)
        .map(|row| {
            let words = [row * 7 % 41, 3000][usize::from(row % 17 == 0)];
            let words: Vec<&str> = (row..row + words).map(word).collect();
            words.join(" ")
        })
        .collect()
}

on_every_device!(
    parity_minilm_vectors,
    batches_do_not_move_vectors,
    bf16_moves_vectors_by_rounding_alone,
);

fn parity_minilm_vectors(device: Device) {
    let vectors = embed(&embedder(device, DtypeChoice::F32), &TEXTS);
    for (vector, first) in vectors.iter().zip(FIRST) {
        assert_eq!(vector.len(), 384);
        assert!((product(vector, vector) - 1.0).abs() < 1e-5);
        for (found, expected) in vector.iter().zip(first) {
            assert!(
                (found - expected).abs() < 1e-5,
                "{found} instead of {expected}"
            );
        }
    }
    for (a, b, expected) in PRODUCTS {
        assert!((product(&vectors[a], &vectors[b]) - expected).abs() < 1e-5);
    }
}

/// Texts of many lengths take several batches, and each vector is that of the text alone.
fn batches_do_not_move_vectors(device: Device) {
    let embedder = embedder(device, DtypeChoice::F32);
    let (texts, mut heard) = (many(), Vec::new());
    let vectors = embedder
        .embed(&texts, &mut |done| {
            heard.push(done);
            Ok::<_, LmError>(())
        })
        .unwrap();
    assert_eq!(heard.last(), Some(&texts.len()));
    assert!(device.is_cuda() || heard.len() > 1);
    for (text, vector) in texts.iter().zip(&vectors) {
        let alone = embed(&embedder, &[text]);
        for (a, b) in std::iter::zip(vector, &alone[0]) {
            assert!((a - b).abs() < 1e-5, "{a} and alone {b}");
        }
    }
    assert!(embed::<&str>(&embedder, &[]).is_empty());
}

fn bf16_moves_vectors_by_rounding_alone(device: Device) {
    let texts = many();
    let exact = embed(&embedder(Device::Cpu, DtypeChoice::F32), &texts);
    let rounded = embed(&embedder(device, DtypeChoice::Bf16), &texts);
    for (a, b) in exact.iter().zip(&rounded) {
        assert!(product(a, b) > 1.0 - 1e-3, "cosine {}", product(a, b));
    }
}
