//! Seeds and random numbers derived by hash, so that nothing depends on the state of a generator.

/// A seed for `purpose`, from its place in the seed tree.
pub(super) fn derive(purpose: &str, path: &[u64]) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&hasher(purpose, path).finalize().as_bytes()[..8]);
    u64::from_le_bytes(bytes)
}

/// `count` numbers uniform in [-bound, bound), the same on every machine.
pub(super) fn uniform(seed: u64, name: &str, count: usize, bound: f32) -> Vec<f32> {
    let mut bytes = vec![0; count * 4];
    let mut hasher = hasher("uniform", &[seed]);
    hasher.update(name.as_bytes());
    hasher.finalize_xof().fill(&mut bytes);
    bytes
        .chunks_exact(4)
        .map(|word| {
            // 24 bits fill the mantissa of an f32 exactly.
            let bits = u32::from_le_bytes([word[0], word[1], word[2], word[3]]) >> 8;
            (bits as f32 / (1 << 23) as f32 - 1.0) * bound
        })
        .collect()
}

/// The `index`-th word of a stream (Steele et al. 2014, "Fast splittable pseudorandom number generators").
pub(super) fn splitmix64(seed: u64, index: u64) -> u64 {
    let mut word = seed.wrapping_add((index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// `0..count` in an order drawn by `seed` and `epoch`.
pub(super) fn permutation(seed: u64, epoch: u64, count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    order.sort_by_cached_key(|&index| (derive("order", &[seed, epoch, index as u64]), index));
    order
}

fn hasher(purpose: &str, path: &[u64]) -> blake3::Hasher {
    let mut hasher = blake3::Hasher::new();
    hasher.update(purpose.as_bytes());
    hasher.update(&[0]);
    for step in path {
        hasher.update(&step.to_le_bytes());
    }
    hasher
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permutations_hold_every_index_and_differ_by_epoch() {
        let first = permutation(1, 0, 100);
        let mut sorted = first.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..100).collect::<Vec<_>>());
        assert_eq!(first, permutation(1, 0, 100));
        assert_ne!(first, permutation(1, 1, 100));
        assert_ne!(first, permutation(2, 0, 100));
    }

    #[test]
    fn splitmix64_gives_the_published_stream() {
        // The reference implementation's first words for seed 0.
        assert_eq!(splitmix64(0, 0), 0xe220_a839_7b1d_cdaf);
        assert_eq!(splitmix64(0, 1), 0x6e78_9e6a_a1b9_65f4);
    }

    #[test]
    fn uniform_numbers_fill_their_range() {
        let numbers = uniform(7, "a", 10_000, 0.5);
        assert!(numbers.iter().all(|number| (-0.5..0.5).contains(number)));
        let mean = numbers.iter().sum::<f32>() / 10_000.0;
        assert!(mean.abs() < 0.01, "{mean}");
        assert_ne!(numbers[..4], uniform(7, "b", 4, 0.5)[..]);
    }
}
