//! A model on disk: one GGUF file, or a folder in the layout of Hugging Face.

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::path::Path;

use serde::Deserialize;

use super::ModelError;
use crate::cache::ExternalError;
use crate::digest::Digest;

const INDEX: &str = "model.safetensors.index.json";

/// Whether a file of a model repository takes part: configuration, tokenizer, chat template and safetensors of the top
/// folder, and the pooling of a sentence encoder.
pub fn is_part(name: &str) -> bool {
    let tokenizer = name.starts_with("tokenizer") && name.ends_with(".json");
    let top = !name.contains('/');
    let named = [
        "config.json",
        "generation_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
        "chat_template.json",
        "modules.json",
        "sentence_bert_config.json",
        "1_Pooling/config.json",
        INDEX,
    ];
    named.contains(&name) || (top && (tokenizer || name.ends_with(".safetensors")))
}

/// The digest of a model: of the GGUF file, or over the names and digests of the folder's [parts](is_part).
pub fn digest(
    path: &Path,
    of_file: &dyn Fn(&Path) -> Result<Digest, ExternalError>,
) -> Result<Digest, ModelError> {
    let shown = path.display();
    let unreadable = |error: &dyn std::fmt::Display| {
        ModelError::new(
            format!("the model `{shown}` cannot be read: {error}"),
            "check the file and its permissions",
        )
    };
    match fs_err::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(ModelError::new(
            format!("there is no model at `{shown}`"),
            "give a GGUF file, a model folder, or `hf: owner/name`",
        )),
        Err(error) => Err(unreadable(&error)),
        Ok(metadata) if metadata.is_dir() => {
            let mut hasher = blake3::Hasher::new();
            for name in &check(path)? {
                let digest = of_file(&path.join(name)).map_err(|error| unreadable(&error))?;
                hasher.update(format!("{name}\n{digest}\n").as_bytes());
            }
            Ok(hasher.finalize().into())
        }
        Ok(_) => {
            let mut magic = [0; 4];
            let read = fs_err::File::open(path).and_then(|mut file| file.read_exact(&mut magic));
            if read.is_err() || &magic != b"GGUF" {
                return Err(ModelError::new(
                    format!("`{shown}` is not a GGUF file"),
                    "a model is a GGUF file or a folder with `config.json`, safetensors and `tokenizer.json`",
                ));
            }
            of_file(path).map_err(|error| unreadable(&error))
        }
    }
}

fn parts(folder: &Path) -> io::Result<BTreeSet<String>> {
    let mut parts = BTreeSet::new();
    for entry in fs_err::read_dir(folder)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        // Follows links: the hub's cache is made of them.
        if is_part(&name) && fs_err::metadata(folder.join(&name))?.is_file() {
            parts.insert(name);
        }
    }
    let pooling = "1_Pooling/config.json";
    if folder.join(pooling).is_file() {
        parts.insert(pooling.to_owned());
    }
    Ok(parts)
}

/// The names of a folder's parts, sorted, once nothing is missing.
pub fn check(folder: &Path) -> Result<BTreeSet<String>, ModelError> {
    let shown = folder.display();
    let unreadable = |error: &dyn std::fmt::Display| {
        ModelError::new(
            format!("the model folder `{shown}` cannot be read: {error}"),
            "check its permissions",
        )
    };
    let parts = parts(folder).map_err(|error| unreadable(&error))?;
    let lacks = |what: &str, help: &str| {
        Err(ModelError::new(
            format!("the model folder `{shown}` has no {what}"),
            help,
        ))
    };
    if !parts.contains("config.json") {
        return lacks(
            "`config.json`",
            "give the folder that `save_pretrained` wrote, or a GGUF file",
        );
    }
    if !parts.contains("tokenizer.json") {
        return lacks(
            "`tokenizer.json`",
            "save the fast tokenizer into it: `AutoTokenizer.from_pretrained(…).save_pretrained(…)`",
        );
    }
    if parts.contains(INDEX) {
        let missing: Vec<String> = shards(&folder.join(INDEX))?
            .into_iter()
            .filter(|shard| !parts.contains(shard))
            .collect();
        if let Some(first) = missing.first() {
            let rest = if missing.len() > 1 {
                format!(" and {} more", missing.len() - 1)
            } else {
                String::new()
            };
            return lacks(
                &format!("`{first}`{rest}"),
                "its index names them; copy or download the folder again",
            );
        }
    } else if !parts.iter().any(|name| name.ends_with(".safetensors")) {
        return lacks(
            "safetensors weights",
            "other formats are not read; save it with `safe_serialization=True`",
        );
    }
    Ok(parts)
}

/// The weight files that the index names.
fn shards(index: &Path) -> Result<BTreeSet<String>, ModelError> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: std::collections::BTreeMap<String, String>,
    }
    let text = fs_err::read_to_string(index).map_err(|error| error.to_string());
    let index = text.and_then(|text| {
        serde_json::from_str::<Index>(&text)
            .map_err(|error| format!("`{}`: {error}", index.display()))
    });
    let index =
        index.map_err(|error| ModelError::new(error, "copy or download the model again"))?;
    Ok(index.weight_map.into_values().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        folder
    }

    fn of(folder: &tempfile::TempDir) -> Result<Digest, String> {
        digest(folder.path(), &|path| {
            Ok(Digest::of(std::fs::read(path).unwrap()))
        })
        .map_err(|error| {
            error
                .to_string()
                .replace(&folder.path().display().to_string(), "base")
        })
    }

    const WHOLE: [(&str, &str); 4] = [
        ("config.json", "{}"),
        ("tokenizer.json", "{}"),
        ("model.safetensors", "w"),
        ("README.md", "hello"),
    ];

    #[test]
    fn only_parts_count() {
        let before = of(&folder(&WHOLE)).unwrap();
        let with =
            |name, content| of(&folder(&[WHOLE.as_slice(), &[(name, content)]].concat())).unwrap();
        assert_eq!(with("README.md", "other"), before);
        assert_eq!(with("onnx/model.safetensors", "x"), before);
        assert_ne!(with("model.safetensors", "v"), before);
        assert_ne!(with("chat_template.jinja", "{{ x }}"), before);
        assert_ne!(with("1_Pooling/config.json", "{}"), before);
    }

    #[test]
    fn what_a_folder_lacks_is_named() {
        let without = |name: &str| {
            let files: Vec<_> = WHOLE.into_iter().filter(|file| file.0 != name).collect();
            of(&folder(&files)).unwrap_err()
        };
        insta::assert_snapshot!(without("config.json"), @"the model folder `base` has no `config.json`");
        insta::assert_snapshot!(without("tokenizer.json"), @"the model folder `base` has no `tokenizer.json`");
        insta::assert_snapshot!(without("model.safetensors"), @"the model folder `base` has no safetensors weights");
        let index =
            r#"{"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}"#;
        let cut = folder(
            &[
                WHOLE.as_slice(),
                &[(INDEX, index), ("model-1-of-2.safetensors", "w")],
            ]
            .concat(),
        );
        insta::assert_snapshot!(of(&cut).unwrap_err(), @"the model folder `base` has no `model-2-of-2.safetensors`");
        let cut = folder(&[WHOLE.as_slice(), &[(INDEX, "{")]].concat());
        insta::assert_snapshot!(of(&cut).unwrap_err(), @"`base/model.safetensors.index.json`: EOF while parsing an object at line 1 column 1");
    }

    #[test]
    fn a_file_must_be_gguf() {
        let folder = folder(&[("a.gguf", "GGUF and more"), ("b.gguf", "<html>")]);
        let of = |name: &str| {
            digest(&folder.path().join(name), &|path| {
                Ok(Digest::of(std::fs::read(path).unwrap()))
            })
        };
        assert_eq!(of("a.gguf").unwrap(), Digest::of("GGUF and more"));
        assert!(
            of("b.gguf")
                .unwrap_err()
                .to_string()
                .ends_with("is not a GGUF file")
        );
    }
}
