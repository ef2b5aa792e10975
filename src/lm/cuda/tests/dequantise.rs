use tch::Kind;

use super::{empty, gpu, normal};
use crate::lm::cuda::Dequantise;
use crate::lm::{Int8, Nf4};

#[test]
fn decoding_gives_the_bits_of_the_plain_decoders_where_there_is_a_gpu() {
    let Some(device) = gpu() else { return };
    let dequantise = Dequantise::new(device).unwrap();
    // The second has rows that end inside a block.
    for [out, inner] in [[192, 2560], [96, 72]] {
        let weight = normal(&[out, inner], 1, device) * 0.02;
        let wide = empty(&[out, inner + 48], device);
        for double in [true, false] {
            let nf4 = Nf4::encode(&weight, double).unwrap();
            dequantise.nf4(&nf4, &wide).unwrap();
            assert_eq!(wide.narrow(1, 0, inner), nf4.decode(Kind::BFloat16));
        }
        let int8 = Int8::encode(&weight).unwrap();
        dequantise.int8(&int8, &wide).unwrap();
        assert_eq!(wide.narrow(1, 0, inner), int8.decode(Kind::BFloat16));
        assert_eq!(wide.narrow(1, inner, 48).abs().max().double_value(&[]), 0.0);
    }
}
