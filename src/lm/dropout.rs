//! Dropout whose mask is a function of a seed and of the element's place, not of a generator that others draw from too.

use std::cell::Cell;

use half::bf16;
use rayon::prelude::*;
use tch::{Kind, Tensor};

use super::cuda::dropout_mask;
use super::seeds::splitmix64;

/// Drops elements in training (Srivastava et al. 2014); the others grow so that the mean stays.
pub struct Dropout {
    probability: f64,
    seed: Cell<u64>,
}

/// Elements that one task fills: large enough to pay for a task, small enough to share.
const TASK: usize = 1 << 15;
/// Elements decided by one random word, 16 bits each.
const LANES: usize = 4;

impl Dropout {
    pub fn new(probability: f64) -> Self {
        Self {
            probability,
            seed: Cell::new(0),
        }
    }

    /// Decides what the next calls of [`Dropout::apply`] drop.
    pub fn reseed(&self, seed: u64) {
        self.seed.set(seed);
    }

    pub fn apply(&self, x: &Tensor) -> Tensor {
        if self.probability == 0.0 {
            return x.shallow_clone();
        }
        if x.device().is_cuda() {
            return x * self.gpu_mask(x);
        }
        x * self.mask(&x.size(), x.kind())
    }

    /// The mask made where it is used; by the host where the kernel cannot be had.
    fn gpu_mask(&self, x: &Tensor) -> Tensor {
        let threshold = (self.probability * 65_536.0).round() as u16;
        let kept = (1.0 / (1.0 - f64::from(threshold) / 65_536.0)) as f32;
        match dropout_mask(&x.size(), kept, self.seed.get(), threshold, x.device()) {
            Ok(mask) => mask.to_kind(x.kind()),
            Err(_) => self.mask(&x.size(), x.kind()).to_device(x.device()),
        }
    }

    /// 0 where an element is dropped, else 1 / (1 - probability), to 16 bits of the probability.
    fn mask(&self, shape: &[i64], kind: Kind) -> Tensor {
        let threshold = (self.probability * 65_536.0).round() as u16;
        let kept = 1.0 / (1.0 - f64::from(threshold) / 65_536.0);
        let seed = self.seed.get();
        let count = shape.iter().product::<i64>() as usize;
        match kind {
            // By bits, because tch takes `half::bf16` for the other 16-bit kind.
            Kind::BFloat16 => {
                let kept = bf16::from_f64(kept).to_bits() as i16;
                Tensor::from_slice(&fill(count, seed, threshold, kept)).view_dtype(kind)
            }
            _ => Tensor::from_slice(&fill(count, seed, threshold, kept as f32)).to_kind(kind),
        }
        .view(shape)
    }
}

fn fill<T: Copy + Default + Send + Sync>(
    count: usize,
    seed: u64,
    threshold: u16,
    kept: T,
) -> Vec<T> {
    let mut mask = vec![T::default(); count];
    mask.par_chunks_mut(TASK)
        .enumerate()
        .for_each(|(task, chunk)| {
            let first = (task * TASK / LANES) as u64;
            for (word, lanes) in (first..).zip(chunk.chunks_mut(LANES)) {
                let mut bits = splitmix64(seed, word);
                for lane in lanes {
                    if bits as u16 >= threshold {
                        *lane = kept;
                    }
                    bits >>= 16;
                }
            }
        });
    mask
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    #[test]
    fn keeps_the_mean_and_repeats_for_a_seed() {
        let dropout = Dropout::new(0.25);
        dropout.reseed(3);
        let ones = Tensor::ones([300, 301], (Kind::Float, Device::Cpu));
        let first = dropout.apply(&ones);
        assert_eq!(dropout.apply(&ones), first);
        let dropped = first.eq(0.0).to_kind(Kind::Float).mean(Kind::Float);
        assert!((dropped.double_value(&[]) - 0.25).abs() < 0.01);
        assert!((first.mean(Kind::Float).double_value(&[]) - 1.0).abs() < 0.01);
        dropout.reseed(4);
        assert_ne!(dropout.apply(&ones), first);
    }
}
