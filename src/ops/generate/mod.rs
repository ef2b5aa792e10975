//! The op `generate`: a model answers every row, with or without an adapter.

#[cfg(feature = "torch")]
mod local;

use std::collections::BTreeMap;

use serde::Deserialize;

#[cfg(feature = "torch")]
pub use self::local::run;
use super::language_model::{Chat, PRECISION_CHOICES, all_slots, dtype_param, quant_param};
use super::{Op, Problem};
use crate::config::{Columns, Interface, Param, ParamKind, Port};
use crate::graph::{Node, Resources};

pub struct Generate;

#[derive(Debug, Deserialize)]
#[cfg_attr(
    not(feature = "torch"),
    expect(dead_code, reason = "read by the language-model runtime")
)]
struct Params {
    chat: Chat,
    quant: String,
    dtype: String,
    batch_size: usize,
    generation: Decoding,
}

#[derive(Debug, Deserialize)]
#[cfg_attr(
    not(feature = "torch"),
    expect(dead_code, reason = "read by the language-model runtime")
)]
struct Decoding {
    max_new_tokens: usize,
    temperature: f64,
    top_p: f64,
    top_k: usize,
    repetition_penalty: f64,
    no_repeat_ngram_size: usize,
}

impl Op for Generate {
    fn name(&self) -> &'static str {
        "generate"
    }

    /// 2: the random stream of a row depends on the node's seed and the prompt alone.
    fn version(&self) -> u32 {
        5
    }

    fn interface(&self) -> Interface {
        let natural = |min: i64| ParamKind::Integer {
            min: Some(min),
            max: None,
        };
        let number = |min: f64, max: Option<f64>| ParamKind::Number {
            min: Some(min),
            max,
        };
        let decoding = [
            (
                "max_new_tokens",
                Param::default(natural(1), 256, "Longest answer, in tokens."),
            ),
            (
                "temperature",
                Param::default(number(0.0, None), 0.0, "0 decodes greedily."),
            ),
            (
                "top_p",
                Param::default(
                    number(0.0, Some(1.0)),
                    1.0,
                    "Nucleus sampling; 1 keeps all tokens.",
                ),
            ),
            (
                "top_k",
                Param::default(natural(0), 0, "Keep the k likeliest tokens; 0 keeps all."),
            ),
            (
                "repetition_penalty",
                Param::default(
                    number(0.1, None),
                    1.0,
                    "Above 1 discourages tokens seen before.",
                ),
            ),
            (
                "no_repeat_ngram_size",
                Param::default(natural(0), 0, "No n-gram of this length twice; 0 allows."),
            ),
        ];
        let decoding = decoding
            .into_iter()
            .map(|(name, param)| (name.to_owned(), param))
            .collect();
        let params = BTreeMap::from([
            (
                "model",
                Param::required(ParamKind::Model, "The model that answers."),
            ),
            ("chat", Chat::param()),
            ("quant", quant_param(&PRECISION_CHOICES, "none")),
            ("dtype", dtype_param()),
            (
                "batch_size",
                Param::default(natural(1), 16, "Sequences generated at a time."),
            ),
            (
                "generation",
                Param::default(
                    ParamKind::Record(decoding),
                    serde_json::json!({}),
                    "Decoding.",
                ),
            ),
        ]);
        let answers = Port::table(
            "One row per input row: what the model answered, how many tokens, and why it ended (`stop` or `length`).",
            &[
                ("id", "VARCHAR"),
                ("prediction", "VARCHAR"),
                ("tokens", "BIGINT"),
                ("finish", "VARCHAR"),
            ],
        );
        Interface {
            doc: "Lets a model answer every row.".to_owned(),
            params: params
                .into_iter()
                .map(|(name, param)| (name.to_owned(), param))
                .collect(),
            inputs: BTreeMap::from([
                (
                    "rows".to_owned(),
                    Port::table("Rows to answer.", &[("id", "VARCHAR")]),
                ),
                (
                    "adapter".to_owned(),
                    Port::files("A PEFT adapter.").optional(),
                ),
            ]),
            outputs: BTreeMap::from([("rows".to_owned(), answers)]),
            open_inputs: false,
        }
    }

    /// Greedy decoding draws nothing.
    fn seeded(&self, node: &Node) -> bool {
        node.params
            .get("generation")
            .and_then(|generation| generation.get("temperature"))
            .and_then(serde_json::Value::as_f64)
            .is_some_and(|temperature| temperature > 0.0)
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
        super::language_model::check_chat(
            node,
            inputs.get("rows").and_then(Option::as_ref),
            false,
        )?;
        let outputs = self.interface().outputs;
        Ok(outputs
            .into_iter()
            .map(|(name, port)| (name, Some(port.columns)))
            .collect())
    }
}
