//! AdamW with 8-bit moments against bitsandbytes, step by step.

use tch::{Device, Kind};

use super::{assert_close, assert_same, at, on_every_device, tensors};
use crate::lm::DynamicMap;
use crate::lm::adamw::{AdamW, AdamWConfig};

/// What the reference run used.
const LEARNING_RATE: f64 = 1e-3;

on_every_device!(parity_c2_adamw8bit);

fn parity_c2_adamw8bit(device: Device) {
    at(device, Kind::Float);
    let c2 = tensors("c2_adamw8bit.safetensors");
    assert_same(DynamicMap::signed(device).values(), &c2("qmap1"));
    assert_same(DynamicMap::unsigned(device).values(), &c2("qmap2"));

    let mut parameters = c2("p0").to_device(device);
    let length = parameters.size()[0];
    let mut optimizer = AdamW::new(AdamWConfig::default(), length, length, device);
    for step in 1..=3 {
        optimizer
            .step(
                &mut parameters,
                &c2(&format!("g{step}")).to_device(device),
                LEARNING_RATE,
            )
            .unwrap();
        assert_close(&parameters, &c2(&format!("p{step}")), 1e-6);
        for (name, tensor) in optimizer.state() {
            let (expected, tolerance) = match name {
                "first_codes" => ("state1", 1.0),
                "second_codes" => ("state2", 1.0),
                "first_absmax" => ("absmax1", 1e-6),
                "second_absmax" => ("absmax2", 1e-6),
                _ => continue,
            };
            let expected = c2(&format!("{expected}_{step}")).view_as(&tensor);
            assert_close(&tensor, &expected, tolerance);
        }
    }
}
