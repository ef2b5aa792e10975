//! all-MiniLM-L6-v2 against transformers.

use super::model_path;
use crate::lm::{DeviceChoice, DtypeChoice, Embedder, LoadOptions};

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

fn embedder(dtype: DtypeChoice) -> Embedder {
    let options = LoadOptions {
        device: DeviceChoice::Cpu,
        dtype,
    };
    Embedder::load(&model_path("all-minilm-l6-v2"), &options).unwrap()
}

fn product(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[test]
fn parity_minilm_vectors() {
    let vectors = embedder(DtypeChoice::F32).embed(&TEXTS).unwrap();
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

/// Long texts are cut, many texts take several batches, and none of that moves a vector.
#[test]
fn batches_do_not_move_vectors() {
    let embedder = embedder(DtypeChoice::F32);
    let long = "diabetes ".repeat(3000);
    let mut texts = vec![long.as_str(); 40];
    texts.extend(TEXTS);
    let vectors = embedder.embed(&texts).unwrap();
    assert_eq!(vectors.len(), 43);
    let alone = embedder.embed(&TEXTS).unwrap();
    for (a, b) in vectors[40..].iter().zip(&alone) {
        assert!(product(a, b) > 1.0 - 1e-5);
    }
    assert!(embedder.embed::<&str>(&[]).unwrap().is_empty());
}
