//! Logits, hidden states and loss of the tiny checkpoints.

use tch::{Device, Kind, Tensor};

use super::{
    FAMILIES, assert_close, at, cpu, fixture, ids, on_every_device, tensors, tiny, tiny_at,
};
use crate::lm::{Batch, Decoder, ModelConfig, attention};

fn logits(decoder: &Decoder, sequences: &[Vec<i64>]) -> Tensor {
    let batch = Batch::pack(sequences, decoder.placement().device);
    decoder.logits(&decoder.forward(&batch))
}

on_every_device!(
    parity_a_logits_f32,
    parity_a_logits_left_padded,
    parity_a_logits_packed,
    parity_a_hidden_states,
    parity_a_lm_loss,
    parity_a_logits_bf16,
);

/// The first sequence of a fixture, which has no padding.
fn first(a: &impl Fn(&str) -> Tensor) -> Vec<i64> {
    ids(&a("input_ids").get(0))
}

#[test]
fn parity_a_both_config_formats() {
    for family in FAMILIES {
        let folder = fixture(&format!("tiny_{family}"));
        let new = ModelConfig::from_hf(&folder.join("config.json")).unwrap();
        let old = ModelConfig::from_hf(&folder.join("config_v4.json")).unwrap();
        assert_eq!(new, old);
    }
}

fn parity_a_logits_f32(device: Device) {
    for family in FAMILIES {
        let a = tensors(&format!("a_{family}_logits.safetensors"));
        let (_, decoder) = tiny_at(family, at(device, Kind::Float));
        assert_close(&logits(&decoder, &[first(&a)]), &a("logits").get(0), 1e-4);
    }
}

/// A left-padded row of the reference is here the same tokens without padding, packed behind the other row.
fn parity_a_logits_left_padded(device: Device) {
    for family in FAMILIES {
        let a = tensors(&format!("a_{family}_logits.safetensors"));
        let (_, decoder) = tiny_at(family, at(device, Kind::Float));
        let mask = a("attention_mask");
        let rows = mask.size()[0];
        let unpadded: Vec<Vec<i64>> = (0..rows)
            .map(|row| ids(&a("input_ids").get(row).masked_select(&mask.get(row).ge(1))))
            .collect();
        assert!(
            unpadded.iter().any(|row| row.len() < unpadded[0].len()),
            "no row is padded"
        );
        let expected: Vec<Tensor> = (0..rows)
            .map(|row| {
                let kept = mask.get(row).nonzero().squeeze_dim(1);
                a("logits_left_padded").get(row).index_select(0, &kept)
            })
            .collect();
        assert_close(
            &logits(&decoder, &unpadded),
            &Tensor::cat(&expected, 0),
            1e-4,
        );
    }
}

fn parity_a_logits_packed(device: Device) {
    for family in FAMILIES {
        let a = tensors(&format!("a_{family}_logits.safetensors"));
        let (_, decoder) = tiny_at(family, at(device, Kind::Float));
        let sequence = first(&a);
        let packed = [sequence[..10].to_vec(), sequence[10..].to_vec()];
        assert_close(
            &logits(&decoder, &packed),
            &a("logits_packed_10_14").get(0),
            1e-4,
        );
    }
}

/// Layer by layer, as a trainer that recomputes them would.
fn parity_a_hidden_states(device: Device) {
    for family in FAMILIES {
        let a = tensors(&format!("a_{family}_logits.safetensors"));
        let (config, decoder) = tiny_at(family, at(device, Kind::Float));
        let batch = Batch::pack(&[first(&a)], device);
        let rotary = decoder.rotary(&batch.positions);
        let mut x = decoder.embed(&batch.ids);
        for (index, layer) in decoder.layers().iter().enumerate() {
            assert_close(&x, &a(&format!("hidden_{index}")).get(0), 1e-4);
            x = layer.forward(&x, &rotary, |q, k, v| {
                attention::causal_varlen(q, k, v, &batch.cu_seqlens)
            });
        }
        let last = a(&format!("hidden_{}", config.layers)).get(0);
        assert_close(&decoder.norm(&x), &last, 1e-4);
    }
}

fn parity_a_lm_loss(device: Device) {
    for family in FAMILIES {
        let a = tensors(&format!("a_{family}_logits.safetensors"));
        let (_, decoder) = tiny_at(family, at(device, Kind::Float));
        let sequence = first(&a);
        let logits = logits(&decoder, std::slice::from_ref(&sequence));
        let loss = logits
            .narrow(0, 0, logits.size()[0] - 1)
            .cross_entropy_for_logits(&Tensor::from_slice(&sequence[1..]).to_device(device));
        assert_close(&loss.view([1]), &a("lm_loss"), 1e-4);
    }
}

fn parity_a_logits_bf16(device: Device) {
    for family in FAMILIES {
        let a = tensors(&format!("a_{family}_logits.safetensors"));
        let expected =
            tensors(&format!("a_{family}_logits_bf16.safetensors"))("logits_bf16").get(0);
        let (_, decoder) = tiny_at(family, at(device, Kind::BFloat16));
        let found = logits(&decoder, &[first(&a)]);
        assert_close(&found, &expected, 0.1);
        assert_eq!(
            ids(&found.argmax(1, false)),
            ids(&expected.argmax(1, false))
        );
    }
}

/// What a trainer needs: gradients reach the input of a layer, and frozen weights ask for none.
#[test]
fn layers_are_differentiable_in_their_input() {
    let (_, decoder) = tiny(FAMILIES[0], Kind::Float);
    let batch = Batch::pack(&[[1_i64, 5, 9, 2]], cpu(Kind::Float).device);
    let rotary = decoder.rotary(&batch.positions);
    let x = decoder.embed(&batch.ids);
    assert!(!x.requires_grad());
    let x = x.set_requires_grad(true);
    let layer = &decoder.layers()[0];
    let y = layer.forward(&x, &rotary, |q, k, v| {
        attention::causal_varlen(q, k, v, &batch.cu_seqlens)
    });
    y.sum(Kind::Float).backward();
    assert!(x.grad().abs().min().double_value(&[]) > 0.0);
}
