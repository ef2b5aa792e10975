//! What a user writes under `with:` of a source.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

use super::Format;
use crate::config::{Interface, Param, ParamKind, Port, display};
use crate::digest::Digest;
use crate::graph::Node;
use crate::ops::Problem;

#[derive(Debug, Clone, Default, Deserialize)]
pub struct Params {
    pub digest: Option<Digest>,
    pub format: Option<Format>,
    #[serde(default = "train")]
    pub split: String,
    /// New name to old name.
    #[serde(default)]
    pub columns: BTreeMap<String, String>,
    pub id: Option<String>,
    pub require: Option<Vec<String>>,
    #[serde(default)]
    pub limit: Limit,
    #[serde(default)]
    pub limit_by: Vec<String>,
    #[serde(default)]
    pub keep_together: Vec<String>,
    #[serde(default)]
    pub whitespace: Whitespace,
}

fn train() -> String {
    "train".to_owned()
}

/// How many rows at most.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Limit {
    #[default]
    All,
    Rows(u64),
}

/// What happens to blanks in text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Whitespace {
    Keep,
    /// Goes at both ends.
    #[default]
    Trim,
    /// Trimmed, and inside runs of blanks become one space and blank lines go.
    Collapse,
}

impl Params {
    pub fn of(node: &Node) -> Result<Self, Problem> {
        let value = Value::Object(node.params.clone());
        serde_path_to_error::deserialize(value).map_err(|error| {
            let at = error.path().to_string();
            Problem {
                at,
                message: error.inner().to_string(),
                help: None,
            }
        })
    }

    /// Columns of the data that are text whatever they look like.
    pub fn text_columns(&self) -> impl Iterator<Item = &str> {
        let usual = ["id", "question", "answer"];
        let named = usual
            .into_iter()
            .chain(self.id.as_deref())
            .chain(self.require.iter().flatten().map(String::as_str));
        let mut names: Vec<&str> = named
            .map(|name| self.columns.get(name).map_or(name, String::as_str))
            .collect();
        names.sort_unstable();
        names.dedup();
        names.into_iter()
    }

    /// The given format, else the one that the names tell.
    pub fn format_of(&self, path: &Path) -> Result<Format, Problem> {
        self.format
            .or_else(|| Format::detect(path))
            .ok_or_else(|| Problem {
                at: "path".to_owned(),
                message: format!(
                    "the format of `{}` is not clear from its name",
                    display(path)
                ),
                help: Some(format!(
                    "give `format`, one of {}",
                    Format::NAMES.join(", ")
                )),
            })
    }
}

impl<'de> Deserialize<'de> for Limit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let wrong = |value: &Value| {
            serde::de::Error::custom(format!("`limit` is a number of rows or `all`, not {value}"))
        };
        match Value::deserialize(deserializer)? {
            Value::String(text) if text == "all" => Ok(Self::All),
            Value::String(text) => text
                .parse()
                .map(Self::Rows)
                .map_err(|_| wrong(&Value::String(text))),
            value => value.as_u64().map(Self::Rows).ok_or_else(|| wrong(&value)),
        }
    }
}

pub fn interface() -> Interface {
    let list = || ParamKind::List(Box::new(ParamKind::Text));
    let formats = Format::NAMES.map(str::to_owned).to_vec();
    let params = [
        ("path", Param::required(ParamKind::Path, "A file or a folder.")),
        ("url", Param::optional(ParamKind::Text, "Where to download it from when it is not at `path`.").unhashed()),
        (
            "digest",
            Param::optional(ParamKind::Text, "The digest that the content must have: of a zip archive over its members, else of the bytes.").unhashed(),
        ),
        ("format", Param::optional(ParamKind::Choice(formats), "What the data is; by default told by the name.")),
        ("split", Param::default(ParamKind::Text, "train", "The split of a Hugging Face dataset.")),
        ("columns", Param::default(ParamKind::Map(Box::new(ParamKind::Text)), json!({}), "New column names, each with the name in the data.")),
        ("id", Param::optional(ParamKind::Text, "The column that identifies a row; by default `id`, else a hash of the row.")),
        ("require", Param::optional(list(), "Columns without which a row is dropped; by default `question` and `answer` where they are.")),
        ("limit", Param::default(ParamKind::Any, "all", "At most so many rows, drawn by seed; `all` keeps every row.")),
        ("limit_by", Param::default(list(), json!([]), "Columns whose values keep their shares under `limit`.")),
        ("keep_together", Param::default(list(), json!([]), "Columns: rows with the same values are drawn together or not at all.")),
        (
            "whitespace",
            Param::default(
                ParamKind::Choice(["keep", "trim", "collapse"].map(str::to_owned).to_vec()),
                "trim",
                "Blanks in text: as they are, gone at both ends, or also single inside.",
            ),
        ),
    ];
    Interface {
        doc: "Reads data from outside: a table with an `id` per row, or files as they are."
            .to_owned(),
        params: params
            .into_iter()
            .map(|(name, param)| (name.to_owned(), param))
            .collect(),
        inputs: BTreeMap::new(),
        outputs: BTreeMap::from([
            (
                "rows".to_owned(),
                Port::table(
                    "The rows; every one has an `id` of its own.",
                    &[("id", "VARCHAR")],
                ),
            ),
            (
                "files".to_owned(),
                Port::files("What is at `path`, for the format `files`."),
            ),
        ]),
        open_inputs: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_is_a_number_or_all() {
        let limit = |value: Value| serde_json::from_value::<Limit>(value);
        assert_eq!(limit(json!("all")).unwrap(), Limit::All);
        assert_eq!(limit(json!(300)).unwrap(), Limit::Rows(300));
        assert_eq!(limit(json!("300")).unwrap(), Limit::Rows(300));
        insta::assert_snapshot!(limit(json!(-3)).unwrap_err(), @"`limit` is a number of rows or `all`, not -3");
        insta::assert_snapshot!(limit(json!("most")).unwrap_err(), @r#"`limit` is a number of rows or `all`, not "most""#);
    }
}
