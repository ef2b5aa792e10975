//! Adapters on disk in the format of PEFT (<https://github.com/huggingface/peft>): `adapter_config.json` and
//! `adapter_model.safetensors`, which its `PeftModel.from_pretrained` loads.
//!
//! Beside them lie the chat template that the adapter was trained with and its hash (`flow.json`): a model answers well
//! only to prompts built as in training.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use serde_json::{Value, json};

use super::safetensors_file::SafetensorsFile;
use super::tensor_file::{write_atomically, write_tensors};
use super::{Adapter, Decoder, LmError, LoraConfig};

const CONFIG: &str = "adapter_config.json";
const TENSORS: &str = "adapter_model.safetensors";
const TEMPLATE: &str = "chat_template.jinja";
const FLOW: &str = "flow.json";

/// Settings of PEFT that change what an adapter computes, and the values at which this runtime computes the same.
const NEUTRAL: [(&str, &[Value]); 7] = [
    ("bias", &[Value::Null]),
    ("fan_in_fan_out", &[Value::Bool(false)]),
    ("lora_bias", &[Value::Bool(false)]),
    ("use_qalora", &[Value::Bool(false)]),
    ("modules_to_save", &[]),
    ("layers_to_transform", &[]),
    ("trainable_token_indices", &[]),
];

/// An adapter folder's description.
pub struct SavedAdapter {
    pub lora: LoraConfig,
    /// The chat template of the training, where it was recorded.
    pub template: Option<String>,
}

/// Writes an adapter folder. `base_model` is what PEFT records as the model's name or path.
pub fn write_adapter(
    folder: &Path,
    adapter: &Adapter,
    template: Option<&str>,
    base_model: Option<&str>,
) -> Result<(), LmError> {
    std::fs::create_dir_all(folder).map_err(|error| LmError::write(folder, error))?;
    let config = adapter.config();
    let peft = json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": config.r,
        "lora_alpha": whole(config.alpha),
        "lora_dropout": config.dropout,
        "target_modules": config.targets,
        "use_rslora": config.rslora,
        "use_dora": config.dora,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "modules_to_save": null,
    });
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    write_tensors(&folder.join(TENSORS), &adapter.tensors(), metadata)?;
    write_json(&folder.join(CONFIG), &peft)?;
    if let Some(template) = template {
        write_atomically(&folder.join(TEMPLATE), template.as_bytes())?;
    }
    let flow = json!({ "chat_template_blake3": template.map(template_hash) });
    write_json(&folder.join(FLOW), &flow)
}

/// Reads an adapter's configuration and template.
///
/// # Errors
/// [`LmError::Adapter`] for settings of PEFT that this runtime does not compute, and for a template that is not the
/// one recorded.
pub fn read_adapter(folder: &Path) -> Result<SavedAdapter, LmError> {
    let path = folder.join(CONFIG);
    let lora =
        parse_config(&read_json(&path)?).map_err(|reason| LmError::adapter(&path, reason))?;
    let template_path = folder.join(TEMPLATE);
    let template = match template_path.exists() {
        false => None,
        true => Some(
            std::fs::read_to_string(&template_path)
                .map_err(|error| LmError::read(&template_path, error))?,
        ),
    };
    let flow_path = folder.join(FLOW);
    if flow_path.exists() {
        let recorded = read_json(&flow_path)?["chat_template_blake3"].clone();
        if recorded != json!(template.as_deref().map(template_hash)) {
            let reason = "it is not the template that the adapter was trained with";
            return Err(LmError::adapter(&template_path, reason));
        }
    }
    Ok(SavedAdapter { lora, template })
}

/// Reads an adapter for `decoder`, whole.
pub fn load_adapter(folder: &Path, decoder: &Decoder) -> Result<Adapter, LmError> {
    let saved = read_adapter(folder)?;
    let path = folder.join(TENSORS);
    let file = SafetensorsFile::open(&path)?;
    let mut tensors = BTreeMap::new();
    for name in file.names() {
        tensors.insert(name.clone(), file.tensor(&name)?);
    }
    Adapter::from_tensors(decoder, &saved.lora, 0, tensors)
        .map_err(|error| LmError::adapter(&path, error))
}

/// Refuses a chat template that differs from the one an adapter was trained with.
pub fn check_template(folder: &Path, saved: &SavedAdapter, template: &str) -> Result<(), LmError> {
    match &saved.template {
        Some(trained) if trained != template => Err(LmError::adapter(
            folder,
            "it was trained with another chat template than the model has now",
        )),
        _ => Ok(()),
    }
}

fn parse_config(config: &Value) -> Result<LoraConfig, String> {
    if config["peft_type"] != "LORA" {
        return Err(format!(
            "`peft_type` is {}, not \"LORA\"",
            config["peft_type"]
        ));
    }
    for (key, neutral) in NEUTRAL {
        let value = &config[key];
        let none = key == "bias" && value == "none";
        if !(value.is_null() || none || neutral.contains(value)) {
            return Err(format!("`{key}: {value}` is not supported"));
        }
    }
    for key in ["rank_pattern", "alpha_pattern"] {
        if config[key]
            .as_object()
            .is_some_and(|pattern| !pattern.is_empty())
        {
            return Err(format!("`{key}` is not supported"));
        }
    }
    let targets: Option<Vec<String>> = config["target_modules"].as_array().map(|names| {
        names
            .iter()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect()
    });
    let mut targets = targets.ok_or("`target_modules` is not a list of names")?;
    targets.sort();
    let flag = |key: &str| config[key].as_bool().unwrap_or(false);
    Ok(LoraConfig {
        r: config["r"].as_i64().ok_or("no `r`")?,
        alpha: config["lora_alpha"].as_f64().ok_or("no `lora_alpha`")?,
        dropout: config["lora_dropout"].as_f64().unwrap_or(0.0),
        targets,
        rslora: flag("use_rslora"),
        dora: flag("use_dora"),
    })
}

/// As an integer where it is one: PEFT declares `lora_alpha` so.
fn whole(number: f64) -> Value {
    match number.fract() == 0.0 && number.abs() < 1e15 {
        true => json!(number as i64),
        false => json!(number),
    }
}

fn template_hash(template: &str) -> String {
    blake3::hash(template.as_bytes()).to_hex().to_string()
}

fn write_json(path: &Path, value: &Value) -> Result<(), LmError> {
    let mut text = format!("{value:#}");
    text.push('\n');
    write_atomically(path, text.as_bytes())
}

fn read_json(path: &Path) -> Result<Value, LmError> {
    let bytes = std::fs::read(path).map_err(|error| LmError::read(path, error))?;
    serde_json::from_slice(&bytes).map_err(|error| LmError::corrupt(path, "JSON", error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(changes: Value) -> Value {
        let mut config = json!({
            "peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["v_proj", "q_proj"],
            "bias": "none", "rank_pattern": {}, "use_rslora": true
        });
        for (key, value) in changes.as_object().unwrap() {
            config[key] = value.clone();
        }
        config
    }

    #[test]
    fn reads_what_peft_writes() {
        let lora = parse_config(&config(json!({}))).unwrap();
        assert_eq!((lora.r, lora.alpha, lora.dropout), (8, 16.0, 0.0));
        assert_eq!(lora.targets, ["q_proj", "v_proj"]);
        assert!(lora.rslora && !lora.dora);
    }

    #[test]
    fn refuses_what_it_would_compute_wrongly() {
        for (changes, reason) in [
            (json!({"bias": "all"}), "`bias: \"all\"` is not supported"),
            (
                json!({"modules_to_save": ["lm_head"]}),
                "`modules_to_save: [\"lm_head\"]` is not supported",
            ),
            (
                json!({"rank_pattern": {"q_proj": 4}}),
                "`rank_pattern` is not supported",
            ),
            (
                json!({"peft_type": "IA3"}),
                "`peft_type` is \"IA3\", not \"LORA\"",
            ),
            (
                json!({"target_modules": "all-linear"}),
                "`target_modules` is not a list of names",
            ),
        ] {
            assert_eq!(parse_config(&config(changes)).unwrap_err(), reason);
        }
    }
}
