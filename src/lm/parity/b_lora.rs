//! Gradients of LoRA, rsLoRA and DoRA against PEFT, and the adapter files.

use tch::{Device, Kind, Tensor};

use super::{
    FAMILIES, assert_close, assert_same, at, cpu, fixture, ids, on_every_device, tensors, tiny,
    tiny_at,
};
use crate::lm::backward::{TrainBatch, accumulate_gradient};
use crate::lm::{Adapter, Batch, Decoder, Example, LoraConfig, load_adapter, seeds, write_adapter};

/// The adapters of the fixtures: `b_<family>_<variant>_adapter`.
fn variants() -> Vec<(&'static str, String)> {
    let mut variants = Vec::new();
    for family in FAMILIES {
        for variant in ["lora", "rslora", "dora"] {
            let name = format!("b_{family}_{variant}");
            if fixture(&format!("{name}_adapter")).exists() {
                variants.push((family, name));
            }
        }
    }
    assert!(variants.len() > 1, "no adapters in the fixtures");
    variants
}

/// The rows of a fixture as examples.
fn examples(b: &impl Fn(&str) -> Tensor) -> Vec<Example> {
    let (all_ids, labels) = (b("input_ids"), b("labels"));
    (0..all_ids.size()[0])
        .map(|row| Example {
            id: row.to_string(),
            ids: ids(&all_ids.get(row)),
            labels: ids(&labels.get(row)),
        })
        .collect()
}

fn logits(decoder: &Decoder, examples: &[Example]) -> Tensor {
    let sequences: Vec<&[i64]> = examples.iter().map(|example| &example.ids[..]).collect();
    let batch = Batch::pack(&sequences, decoder.placement().device);
    tch::no_grad(|| decoder.logits(&decoder.forward(&batch)))
}

on_every_device!(
    parity_b_logits_loss_and_gradients,
    merging_gives_the_same_logits
);

fn parity_b_logits_loss_and_gradients(device: Device) {
    for (family, name) in variants() {
        let b = tensors(&format!("{name}_grads.safetensors"));
        let (_, mut decoder) = tiny_at(family, at(device, Kind::Float));
        let adapter = load_adapter(&fixture(&format!("{name}_adapter")), &decoder).unwrap();
        adapter.install(&mut decoder, true).unwrap();
        let examples = examples(&b);
        let expected = b("logits").flatten(0, 1);
        assert_close(&logits(&decoder, &examples), &expected, 1e-4);

        let batch = TrainBatch::pack(&examples.iter().collect::<Vec<_>>(), &decoder);
        let sum = accumulate_gradient(&decoder, &adapter, &batch, 0, 1).unwrap();
        let trained = batch.trained() as f64;
        let loss = b("loss").double_value(&[0]);
        assert!(
            (sum / trained - loss).abs() < 1e-5 * loss,
            "{name}: {} {loss}",
            sum / trained
        );
        for (index, slot) in adapter.parameters().slots().iter().enumerate() {
            // In memory PEFT names the adapter it belongs to.
            let reference = match slot.name.strip_suffix("lora_magnitude_vector") {
                Some(stem) => format!("grad.{stem}lora_magnitude_vector.default.weight"),
                None => format!("grad.{}", slot.name.replace(".weight", ".default.weight")),
            };
            let expected = b(&reference);
            let found = adapter.parameters().gradient(index) / trained;
            let scale = expected.abs().max().double_value(&[]);
            assert_close(&found, &expected, 1e-5 * scale);
        }
    }
}

#[test]
fn parity_b_adapter_files_round_trip() {
    for (family, name) in variants() {
        let (_, decoder) = tiny(family, Kind::Float);
        let source = fixture(&format!("{name}_adapter"));
        let adapter = load_adapter(&source, &decoder).unwrap();
        let folder = tempfile::tempdir().unwrap();
        write_adapter(folder.path(), &adapter, Some("{{ messages }}"), None).unwrap();

        let again = load_adapter(folder.path(), &decoder).unwrap();
        assert_eq!(again.config(), adapter.config());
        let written = tensors_at(&folder.path().join("adapter_model.safetensors"));
        let expected = tensors_at(&source.join("adapter_model.safetensors"));
        assert_eq!(written.len(), expected.len());
        for ((name, found), (expected_name, expected)) in written.iter().zip(&expected) {
            assert_eq!(name, expected_name);
            assert_same(found, expected);
        }
        std::fs::write(folder.path().join("chat_template.jinja"), "changed").unwrap();
        let error = load_adapter(folder.path(), &decoder).err().unwrap();
        assert!(error.to_string().contains("not the template"), "{error}");
    }
}

fn merging_gives_the_same_logits(device: Device) {
    for (family, name) in variants() {
        let b = tensors(&format!("{name}_grads.safetensors"));
        let expected = b("logits").flatten(0, 1);
        for kept in [false, true] {
            let (_, mut decoder) = tiny_at(family, at(device, Kind::Float));
            let base = logits(&decoder, &examples(&b));
            let adapter = load_adapter(&fixture(&format!("{name}_adapter")), &decoder).unwrap();
            adapter.install(&mut decoder, false).unwrap();
            for layer in decoder.layers_mut() {
                for linear in layer.linears_mut() {
                    match kept {
                        true => linear.keep_merged().unwrap(),
                        false => linear.merge(),
                    }
                    assert!(linear.update().is_none(), "computed twice");
                }
            }
            assert_close(&logits(&decoder, &examples(&b)), &expected, 1e-4);
            if kept {
                // The weights are still there without it.
                Adapter::remove(&mut decoder);
                assert_same(&logits(&decoder, &examples(&b)), &base);
            }
        }
    }
}

/// PEFT itself reads what is written here, where `FLOW_PEFT_PYTHON` names a Python that has it.
#[test]
fn peft_loads_written_adapters() {
    let Some(python) = std::env::var_os("FLOW_PEFT_PYTHON") else {
        return;
    };
    for family in FAMILIES {
        for (rslora, dora) in [(false, false), (true, false), (false, true)] {
            let (_, mut decoder) = tiny(family, Kind::Float);
            let config = LoraConfig {
                r: 4,
                rslora,
                dora,
                ..LoraConfig::default()
            };
            let adapter = Adapter::new(&decoder, &config, 0, 1).unwrap();
            let mut values = adapter.parameters().values();
            values += Tensor::from_slice(&seeds::uniform(2, "noise", values.numel(), 0.1));
            adapter.install(&mut decoder, false).unwrap();

            let folder = tempfile::tempdir().unwrap();
            write_adapter(folder.path(), &adapter, None, None).unwrap();
            let input: Vec<i64> = (1..20).collect();
            let example = Example {
                id: String::new(),
                labels: input.clone(),
                ids: input,
            };
            let expected = folder.path().join("expected.safetensors");
            let logits = logits(&decoder, std::slice::from_ref(&example));
            let tensors = [
                ("input_ids", Tensor::from_slice(&example.ids)),
                ("logits", logits),
            ];
            Tensor::write_safetensors(&tensors, &expected).unwrap();
            let status = std::process::Command::new(&python)
                .arg(concat!(
                    env!("CARGO_MANIFEST_DIR"),
                    "/tests/peft_roundtrip.py"
                ))
                .args([
                    fixture(&format!("tiny_{family}")).as_path(),
                    folder.path(),
                    &expected,
                ])
                .status()
                .unwrap();
            assert!(status.success(), "{family}, rslora {rslora}, dora {dora}");
        }
    }
}

#[test]
fn an_adapter_of_another_model_is_refused() {
    cpu(Kind::Float);
    let (_, decoder) = tiny("llama", Kind::Float);
    let error = load_adapter(&fixture("b_qwen3_lora_adapter"), &decoder)
        .err()
        .unwrap();
    assert!(error.to_string().contains("this model needs"), "{error}");
}

/// Every tensor of a file, sorted by name.
fn tensors_at(path: &std::path::Path) -> Vec<(String, Tensor)> {
    let mut tensors = Tensor::read_safetensors(path).unwrap();
    tensors.sort_by(|one, other| one.0.cmp(&other.0));
    tensors
}
