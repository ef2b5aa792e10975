//! Writes a merged model as a folder that transformers and this runtime load: safetensors in bf16, `config.json`, the
//! tokenizer and its chat template.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use serde_json::{Value, json};
use tch::{Kind, Tensor};

use super::LmError;
use super::merged::Merged;
use super::tensor_file::{write_atomically, write_tensors};
use super::tokenizer::optional_json;

/// The most bytes of tensors in one file; they are held in memory together.
const SHARD_BYTES: u64 = 1 << 30;

/// Files of a base folder that are passed on as they are, where it has them.
const TOKENIZER_FILES: [&str; 8] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "generation_config.json",
    "chat_template.jinja",
];

/// Writes `model` into `folder`, which is made. Returns the bytes of all weights.
///
/// # Errors
/// What cannot be read or written.
pub fn write_model_folder(model: &Merged, folder: &Path) -> Result<u64, LmError> {
    std::fs::create_dir_all(folder).map_err(|error| LmError::write(folder, error))?;
    let total = write_weights(model, folder)?;
    match model.base().is_dir() {
        true => copy_description(model.base(), folder)?,
        false => write_description(model, folder)?,
    }
    Ok(total)
}

fn write_weights(model: &Merged, folder: &Path) -> Result<u64, LmError> {
    let shards = shards(model.tensors());
    let count = shards.len();
    let mut file_of = BTreeMap::new();
    let mut total = 0;
    for (index, shard) in shards.into_iter().enumerate() {
        let file = match count {
            1 => "model.safetensors".to_owned(),
            _ => format!("model-{:05}-of-{count:05}.safetensors", index + 1),
        };
        let mut tensors = Vec::with_capacity(shard.len());
        for (name, shape) in shard {
            total += bytes(&shape);
            let tensor = rounded(&model.tensor(&name, &shape)?)?;
            file_of.insert(name.clone(), file.clone());
            tensors.push((name, tensor));
        }
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        write_tensors(&folder.join(&file), &tensors, metadata)?;
    }
    if count > 1 {
        let index = json!({ "metadata": { "total_size": total }, "weight_map": file_of });
        write_json(&folder.join("model.safetensors.index.json"), &index)?;
    }
    Ok(total)
}

fn rounded(tensor: &Tensor) -> Result<Tensor, LmError> {
    Ok(tensor.f_to_kind(Kind::BFloat16)?)
}

/// Of a tensor in bf16.
fn bytes(shape: &[i64]) -> u64 {
    2 * shape.iter().product::<i64>().unsigned_abs()
}

type Named = (String, Vec<i64>);

/// Cuts the list where a file would grow beyond its limit.
fn shards(tensors: Vec<Named>) -> Vec<Vec<Named>> {
    let mut shards: Vec<Vec<Named>> = Vec::new();
    let mut size = u64::MAX;
    for (name, shape) in tensors {
        let more = bytes(&shape);
        if size.saturating_add(more) > SHARD_BYTES {
            shards.push(Vec::new());
            size = 0;
        }
        size += more;
        if let Some(last) = shards.last_mut() {
            last.push((name, shape));
        }
    }
    shards
}

/// From a base folder: its own files, the configuration without what says that its weights are packed.
fn copy_description(base: &Path, folder: &Path) -> Result<(), LmError> {
    let mut config = optional_json(&base.join("config.json"))?;
    if let Some(config) = config.as_object_mut() {
        config.remove("quantization_config");
        let kind = if config.contains_key("dtype") {
            "dtype"
        } else {
            "torch_dtype"
        };
        config.insert(kind.to_owned(), json!("bfloat16"));
    }
    write_json(&folder.join("config.json"), &config)?;
    for name in TOKENIZER_FILES {
        let path = base.join(name);
        if path.exists() {
            let content = std::fs::read(&path).map_err(|error| LmError::read(&path, error))?;
            write_atomically(&folder.join(name), &content)?;
        }
    }
    Ok(())
}

/// From a GGUF base: the same facts in the files of a folder.
fn write_description(model: &Merged, folder: &Path) -> Result<(), LmError> {
    let tokenizer = model.tokenizer();
    let id = |token: Option<&str>| token.and_then(|token| tokenizer.token_id(token));
    let (bos, eos) = (tokenizer.bos_token(), tokenizer.eos_token());
    let mut config = model.config().to_hf();
    config["bos_token_id"] = json!(id(bos));
    config["eos_token_id"] = json!(id(eos));
    write_json(&folder.join("config.json"), &config)?;
    write_json(&folder.join("tokenizer.json"), &tokenizer.to_json()?)?;
    let mut description = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos,
        "eos_token": eos,
        "pad_token": eos,
        "clean_up_tokenization_spaces": false,
        "model_max_length": model.config().context,
    });
    if let Some(template) = model.template() {
        description["chat_template"] = json!(template);
        write_atomically(&folder.join("chat_template.jinja"), template.as_bytes())?;
    }
    write_json(&folder.join("tokenizer_config.json"), &description)?;
    let generation = json!({
        "bos_token_id": id(bos),
        "eos_token_id": tokenizer.stop_ids(),
        "pad_token_id": id(eos),
    });
    write_json(&folder.join("generation_config.json"), &generation)
}

fn write_json(path: &Path, value: &Value) -> Result<(), LmError> {
    write_atomically(path, format!("{value:#}\n").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_ends_before_it_is_too_large() {
        let half = SHARD_BYTES as i64 / 4;
        let named = |name: &str, size: i64| (name.to_owned(), vec![size]);
        let cut = shards(vec![
            named("a", half),
            named("b", half),
            named("c", 1),
            named("d", 5 * half),
        ]);
        let names: Vec<Vec<&str>> = cut
            .iter()
            .map(|shard| shard.iter().map(|(name, _)| name.as_str()).collect())
            .collect();
        assert_eq!(names, [vec!["a", "b"], vec!["c"], vec!["d"]]);
    }
}
