//! The op `train`: QLoRA fine-tuning of a language model on question–answer rows.

#[cfg(feature = "torch")]
mod local;

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::json;

#[cfg(feature = "torch")]
pub use self::local::run;
use super::language_model::{BASE_CHOICES, Chat, all_slots, dtype_param, quant_param};
use super::{Op, Problem};
use crate::config::{Columns, Interface, Param, ParamKind, Port};
use crate::graph::{Node, Resources};

pub struct Train;

#[derive(Debug, Deserialize)]
#[cfg_attr(
    not(feature = "torch"),
    expect(dead_code, reason = "read by the language-model runtime")
)]
struct Params {
    chat: Chat,
    quant: String,
    dtype: String,
    lora: Adapter,
    optimizer: String,
    learning_rate: f64,
    weight_decay: f64,
    max_grad_norm: f64,
    warmup_ratio: f64,
    batch_size: usize,
    gradient_accumulation: usize,
    epochs: u64,
    max_length: usize,
    packing: bool,
    recompute: String,
    compute: String,
    deterministic: bool,
    memory_limit: Option<f64>,
    eval_every: u64,
    early_stopping_patience: u64,
    checkpoint_every: u64,
}

#[derive(Debug, Deserialize)]
#[cfg_attr(
    not(feature = "torch"),
    expect(dead_code, reason = "read by the language-model runtime")
)]
struct Adapter {
    r: i64,
    alpha: f64,
    dropout: f64,
    rslora: bool,
    dora: bool,
    targets: Vec<String>,
}

impl Op for Train {
    fn name(&self) -> &'static str {
        "train"
    }

    fn version(&self) -> u32 {
        2
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
        let choice = |choices: &[&str]| {
            ParamKind::Choice(choices.iter().map(|choice| (*choice).to_owned()).collect())
        };
        let linears = json!([
            "q_proj",
            "k_proj",
            "v_proj",
            "o_proj",
            "gate_proj",
            "up_proj",
            "down_proj"
        ]);
        let lora = [
            ("r", Param::default(natural(1), 16, "Rank.")),
            (
                "alpha",
                Param::default(
                    number(0.0, None),
                    32.0,
                    "The adapter is scaled by alpha / r.",
                ),
            ),
            (
                "dropout",
                Param::default(
                    number(0.0, Some(0.99)),
                    0.05,
                    "Dropout on the adapter's input.",
                ),
            ),
            (
                "rslora",
                Param::default(ParamKind::Bool, false, "Scale by alpha / √r instead."),
            ),
            (
                "dora",
                Param::default(ParamKind::Bool, false, "Weight-decomposed adapter."),
            ),
            (
                "targets",
                Param::default(
                    ParamKind::List(Box::new(ParamKind::Text)),
                    linears,
                    "Linear layers that get an adapter.",
                ),
            ),
        ];
        let lora = lora
            .into_iter()
            .map(|(name, param)| (name.to_owned(), param))
            .collect();
        let params = BTreeMap::from([
            (
                "model",
                Param::required(ParamKind::Model, "The base model."),
            ),
            ("chat", Chat::param()),
            ("quant", quant_param(&BASE_CHOICES, "nf4")),
            ("dtype", dtype_param()),
            (
                "lora",
                Param::default(ParamKind::Record(lora), json!({}), "The adapter."),
            ),
            (
                "optimizer",
                Param::default(choice(&["adamw_8bit", "adamw"]), "adamw_8bit", "Optimizer."),
            ),
            (
                "learning_rate",
                Param::default(number(0.0, None), 5e-5, "Peak learning rate."),
            ),
            (
                "weight_decay",
                Param::default(number(0.0, None), 0.01, "Decoupled weight decay."),
            ),
            (
                "max_grad_norm",
                Param::default(
                    number(0.0, None),
                    1.0,
                    "Clip gradients to this norm; 0 does not.",
                ),
            ),
            (
                "warmup_ratio",
                Param::default(
                    number(0.0, Some(1.0)),
                    0.03,
                    "Share of the steps with rising learning rate.",
                ),
            ),
            (
                "batch_size",
                Param::default(natural(1), 32, "Sequences of one micro-batch."),
            ),
            (
                "gradient_accumulation",
                Param::default(natural(1), 8, "Micro-batches of one optimizer step."),
            ),
            (
                "epochs",
                Param::default(natural(1), 2, "Passes over the rows."),
            ),
            (
                "max_length",
                Param::default(natural(8), 1024, "Tokens of one sequence."),
            ),
            (
                "packing",
                Param::default(ParamKind::Bool, false, "Fill sequences with several rows."),
            ),
            // The gradient is the same bit for bit, so how it is computed is not part of the identity.
            (
                "recompute",
                Param::default(
                    choice(&["auto", "full", "none"]),
                    "auto",
                    "Gradient checkpointing.",
                )
                .unhashed(),
            ),
            (
                "compute",
                Param::default(
                    choice(&["auto", "fp8"]),
                    "auto",
                    "Products of the frozen weights: as dtype says, or in fp8 (e4m3 by row) on a GPU that has it.",
                ),
            ),
            // Other kernels, other bits: a result of the faster ones does not stand in for a reproducible one.
            (
                "deterministic",
                Param::default(
                    ParamKind::Bool,
                    false,
                    "Use only kernels whose results have the same bits every time, on a GPU too.",
                ),
            ),
            // The gradient is the same, so a result does not depend on the card that it was made on.
            (
                "memory_limit",
                Param::optional(
                    number(0.25, None),
                    "What tensors may take of the GPU's memory, in GiB; all that is free by default.",
                )
                .unhashed(),
            ),
            (
                "eval_every",
                Param::default(natural(1), 32, "Steps between evaluations."),
            ),
            (
                "early_stopping_patience",
                Param::default(
                    natural(0),
                    2,
                    "Evaluations without gain before stopping; 0 never stops.",
                ),
            ),
            (
                "checkpoint_every",
                Param::default(natural(1), 8, "Steps between checkpoints.").unhashed(),
            ),
        ]);
        let curve = Port::table(
            "One row per optimizer step.",
            &[
                ("step", "BIGINT"),
                ("epoch", "DOUBLE"),
                ("loss", "DOUBLE"),
                ("learning_rate", "DOUBLE"),
                ("grad_norm", "DOUBLE"),
                ("tokens", "BIGINT"),
                ("validation_loss", "DOUBLE"),
            ],
        );
        Interface {
            doc: "Fine-tunes a language model by QLoRA.".to_owned(),
            params: params
                .into_iter()
                .map(|(name, param)| (name.to_owned(), param))
                .collect(),
            inputs: BTreeMap::from([
                (
                    "train".to_owned(),
                    Port::table("Rows to learn from.", &[("id", "VARCHAR")]),
                ),
                (
                    "validation".to_owned(),
                    Port::table(
                        "Rows whose loss picks the best adapter.",
                        &[("id", "VARCHAR")],
                    )
                    .optional(),
                ),
            ]),
            outputs: BTreeMap::from([
                ("adapter".to_owned(), Port::files("A PEFT adapter folder.")),
                ("curve".to_owned(), curve),
            ]),
            open_inputs: false,
        }
    }

    fn seeded(&self, _: &Node) -> bool {
        true
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
        for port in ["train", "validation"] {
            super::language_model::check_chat(
                node,
                inputs.get(port).and_then(Option::as_ref),
                true,
            )?;
        }
        let outputs = self.interface().outputs;
        Ok(outputs
            .into_iter()
            .map(|(name, port)| (name, (!port.columns.is_empty()).then_some(port.columns)))
            .collect())
    }
}
