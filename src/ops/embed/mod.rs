//! The op `embed`: cosine similarity of two text columns under a sentence-embedding model.

#[cfg(feature = "torch")]
mod local;

use std::collections::BTreeMap;

use serde::Deserialize;

#[cfg(feature = "torch")]
pub use self::local::run;
use super::Op;
use super::language_model::all_slots;
use crate::config::{Columns, Interface, Param, ParamKind, Port};
use crate::graph::{Node, Resources};
use crate::ops::Problem;

pub struct Embed;

#[derive(Debug, Deserialize)]
#[cfg_attr(
    not(feature = "torch"),
    expect(dead_code, reason = "read by the language-model runtime")
)]
struct Params {
    text: String,
    compare_to: String,
}

impl Op for Embed {
    fn name(&self) -> &'static str {
        "embed"
    }

    fn version(&self) -> u32 {
        // Not raised for how texts are batched: that, like the device, moves a similarity by no more than rounding.
        2
    }

    fn interface(&self) -> Interface {
        let params = BTreeMap::from([
            (
                "model",
                Param::required(
                    ParamKind::Model,
                    "A sentence-embedding model of the BERT family.",
                ),
            ),
            ("text", Param::required(ParamKind::Text, "A text column.")),
            (
                "compare_to",
                Param::required(ParamKind::Text, "The text column to compare it with."),
            ),
        ]);
        let similarities = Port::table(
            "Cosine similarity per row, −1 to 1.",
            &[("id", "VARCHAR"), ("similarity", "DOUBLE")],
        );
        Interface {
            doc: "Compares two text columns by the cosine similarity of their sentence embeddings."
                .to_owned(),
            params: params
                .into_iter()
                .map(|(name, param)| (name.to_owned(), param))
                .collect(),
            inputs: BTreeMap::from([(
                "rows".to_owned(),
                Port::table("Rows with two texts.", &[("id", "VARCHAR")]),
            )]),
            outputs: BTreeMap::from([("rows".to_owned(), similarities)]),
            open_inputs: false,
        }
    }

    fn resources(&self, _node: &Node) -> Resources {
        all_slots()
    }

    fn needs_language_model(&self, _node: &Node) -> bool {
        true
    }

    fn columns(
        &self,
        node: &Node,
        inputs: &BTreeMap<String, Option<Columns>>,
    ) -> Result<BTreeMap<String, Option<Columns>>, Vec<Problem>> {
        if let Some(columns) = inputs.get("rows").and_then(Option::as_ref) {
            let wanted = ["text", "compare_to"].map(|param| {
                (
                    param,
                    node.params
                        .get(param)
                        .and_then(serde_json::Value::as_str)
                        .unwrap_or(""),
                )
            });
            let missing = wanted
                .into_iter()
                .filter(|(_, name)| !columns.iter().any(|(column, _)| column == name));
            let problems: Vec<_> = missing
                .map(|(param, name)| super::language_model::missing_column(param, name, columns))
                .collect();
            if !problems.is_empty() {
                return Err(problems);
            }
        }
        let outputs = self.interface().outputs;
        Ok(outputs
            .into_iter()
            .map(|(name, port)| (name, Some(port.columns)))
            .collect())
    }
}
