//! NF4, 8-bit maps and row-wise int8 against bitsandbytes.

use serde_json::Value;
use tch::{Device, Kind, Tensor};

use super::{assert_close, assert_same, at, fixture, on_every_device, tensors};
use crate::lm::weights::Nf4Parts;
use crate::lm::{DynamicMap, Int8, Nf4};

/// The cases of the fixture and whether their scales are quantised too.
fn cases() -> Vec<(String, bool)> {
    let text = std::fs::read_to_string(fixture("c_nf4_meta.json")).unwrap();
    let meta: serde_json::Map<String, Value> = serde_json::from_str(&text).unwrap();
    let cases: Vec<_> = meta
        .into_iter()
        .filter_map(|(name, case)| Some((name, case["dq"].as_bool()?)))
        .collect();
    assert!(cases.len() > 1);
    cases
}

fn parts(c: &impl Fn(&str) -> Tensor, case: &str, double: bool) -> Nf4Parts {
    let part = |name: &str| c(&format!("{case}.weight.{name}"));
    let state: Vec<u8> = Vec::try_from(part("quant_state.bitsandbytes__nf4")).unwrap();
    Nf4Parts {
        packed: c(&format!("{case}.weight")),
        absmax: part("absmax"),
        quant_map: part("quant_map"),
        nested: double.then(|| (part("nested_absmax"), part("nested_quant_map"))),
        state: serde_json::from_slice(&state).unwrap(),
    }
}

on_every_device!(
    parity_c_nf4_encode,
    parity_c_nf4_decode_and_product,
    parity_c_dynamic_maps_and_blocks,
    parity_c_int8_rows,
);

fn parity_c_nf4_encode(device: Device) {
    at(device, Kind::Float);
    let c = tensors("c_nf4.safetensors");
    for (case, double) in cases() {
        let weight = c(&format!("{case}.weight_orig")).to_device(device);
        let found = Nf4::encode(&weight, double).unwrap().to_parts();
        let expected = parts(&c, &case, double);
        assert_same(&found.packed, &expected.packed);
        assert_same(&found.absmax, &expected.absmax);
        assert_same(&found.quant_map, &expected.quant_map);
        assert_eq!(found.nested.is_some(), double);
        if let (Some(found), Some(expected)) = (&found.nested, &expected.nested) {
            assert_same(&found.0, &expected.0);
            assert_same(&found.1, &expected.1);
        }
        assert_eq!(found.state, expected.state, "case {case}");
    }
}

fn parity_c_nf4_decode_and_product(device: Device) {
    at(device, Kind::Float);
    let c = tensors("c_nf4.safetensors");
    for (case, double) in cases() {
        let expected = c(&format!("{case}.dequant"));
        let nf4 = Nf4::from_parts(parts(&c, &case, double), device).unwrap();
        let weight = nf4.decode(expected.kind());
        assert_same(&weight, &expected);
        let x = c(&format!("{case}.x")).to_device(device);
        let y = x.linear::<Tensor>(&weight, None);
        // Both kinds round the same products; only the order of the sums may differ.
        let tolerance = if y.kind() == Kind::Float { 1e-4 } else { 2e-2 };
        assert_close(&y, &c(&format!("{case}.y")), tolerance);
    }
}

#[test]
fn nf4_parts_that_do_not_fit_are_refused() {
    let c = tensors("c_nf4.safetensors");
    let (case, double) = cases().remove(0);
    let mut truncated = parts(&c, &case, double);
    truncated.packed = truncated.packed.narrow(0, 1, 10);
    let error = Nf4::from_parts(truncated, Device::Cpu).err().unwrap();
    assert!(error.starts_with("`weight` does not fit"), "{error}");
    let mut stateless = parts(&c, &case, double);
    stateless.state = Value::Null;
    let error = Nf4::from_parts(stateless, Device::Cpu).err().unwrap();
    assert_eq!(error, "no `blocksize`");
}

fn parity_c_dynamic_maps_and_blocks(device: Device) {
    at(device, Kind::Float);
    let c = tensors("c_nf4.safetensors");
    let signed = DynamicMap::signed(device);
    assert_same(signed.values(), &c("dynamic_map_signed"));
    assert_same(
        DynamicMap::unsigned(device).values(),
        &c("dynamic_map_unsigned"),
    );

    let (x, codes, absmax) = (c("blk8.x"), c("blk8.q"), c("blk8.absmax"));
    let length = x.size()[0];
    let blocks = x
        .constant_pad_nd([0, absmax.size()[0] * 256 - length])
        .view([-1, 256])
        .to_device(device);
    let (found, scales) = signed.quantize(&blocks);
    assert_same(&found.view([-1]).narrow(0, 0, length), &codes);
    assert_same(&scales, &absmax);
    let decoded = signed.dequantize(&found, &scales).view([-1]);
    assert_same(&decoded.narrow(0, 0, length), &c("blk8.deq"));
}

fn parity_c_int8_rows(device: Device) {
    at(device, Kind::Float);
    let c = tensors("c_nf4.safetensors");
    for (weight, codes, absmax) in [
        ("int8.w", "int8.q", "int8.scb"),
        ("int8.w_half", "int8.bnb_q", "int8.bnb_scb"),
    ] {
        let int8 = Int8::encode(&c(weight).to_device(device)).unwrap();
        assert_same(int8.codes(), &c(codes));
        assert_same(int8.absmax(), &c(absmax));
    }
}
