//! `command`: runs a shell script over its inputs; what it writes into `$OUT` is its output.
//!
//! The script sees no more of the environment than is named here, so that a result depends on what was declared.

mod guard;
mod lines;
mod script;
mod supervise;

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{Op, Problem};
use crate::config::{Columns, Interface, Param, ParamKind, Port};
use crate::graph::Node;

pub use script::run;

pub struct Command;

#[derive(Debug, Deserialize)]
struct Params {
    run: String,
    #[serde(default)]
    files: Vec<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    #[serde(default)]
    pass_env: Vec<String>,
    timeout: Option<f64>,
}

impl Op for Command {
    fn name(&self) -> &'static str {
        "command"
    }

    fn version(&self) -> u32 {
        2
    }

    fn interface(&self) -> Interface {
        let text = || Box::new(ParamKind::Text);
        let params = [
            (
                "run",
                Param::required(
                    ParamKind::Text,
                    "the script, run by `sh -e` in an empty folder; each input is a path in `$IN_<name>`, and what is written into the folder `$OUT` is the output",
                ),
            ),
            (
                "files",
                Param::default(
                    ParamKind::List(Box::new(ParamKind::Path)),
                    serde_json::json!([]),
                    "further files it reads; their full paths, one a line, are in `$FILES`",
                ),
            ),
            (
                "env",
                Param::default(
                    ParamKind::Map(text()),
                    serde_json::json!({}),
                    "environment variables",
                ),
            ),
            (
                "pass_env",
                Param::default(
                    ParamKind::List(text()),
                    serde_json::json!([]),
                    "names of variables passed on from the environment; their values, such as secrets, are not in the fingerprint",
                ),
            ),
            (
                "timeout",
                Param::optional(
                    ParamKind::Number {
                        min: Some(0.0),
                        max: None,
                    },
                    "seconds after which the script is ended",
                )
                .unhashed(),
            ),
        ];
        Interface {
            doc: "Runs a shell script. A table arrives as a Parquet file, files as a folder."
                .to_owned(),
            params: params
                .into_iter()
                .map(|(name, param)| (name.to_owned(), param))
                .collect(),
            inputs: BTreeMap::new(),
            outputs: BTreeMap::from([("out".to_owned(), Port::files("everything in `$OUT`"))]),
            open_inputs: true,
        }
    }

    fn wants_machine(&self, _: &Node) -> bool {
        true
    }

    fn environment(&self, node: &Node) -> Vec<String> {
        let names = node
            .params
            .get("pass_env")
            .and_then(|names| names.as_array());
        let names = names.into_iter().flatten();
        names
            .filter_map(|name| Some(name.as_str()?.to_owned()))
            .collect()
    }

    fn columns(
        &self,
        node: &Node,
        _: &BTreeMap<String, Option<Columns>>,
    ) -> Result<BTreeMap<String, Option<Columns>>, Vec<Problem>> {
        let mut seen: BTreeMap<String, &str> = BTreeMap::new();
        let mut problems = Vec::new();
        for input in &node.inputs {
            if let Some(other) = seen.insert(variable(&input.port), &input.port) {
                let message = format!(
                    "the inputs `{other}` and `{}` are both `${}`",
                    input.port,
                    variable(&input.port)
                );
                problems.push(Problem {
                    at: format!("inputs.{}", input.port),
                    message,
                    help: Some("rename one of them".to_owned()),
                });
            }
        }
        let names = node
            .params
            .get("env")
            .and_then(|env| env.as_object())
            .into_iter()
            .flatten()
            .map(|(name, _)| (format!("env.{name}"), name.as_str()));
        let passed = node
            .params
            .get("pass_env")
            .and_then(|names| names.as_array())
            .into_iter()
            .flatten()
            .enumerate();
        let passed =
            passed.filter_map(|(index, name)| Some((format!("pass_env.{index}"), name.as_str()?)));
        for (at, name) in names.chain(passed) {
            if name.is_empty() || name.contains(['=', '\0']) {
                let message = format!("`{name}` cannot be the name of an environment variable");
                problems.push(Problem {
                    at,
                    message,
                    help: None,
                });
            } else if name == "OUT" || name == "FILES" || name.starts_with("IN_") {
                let message = format!("`{name}` is set by flow itself");
                problems.push(Problem {
                    at,
                    message,
                    help: Some("choose another name".to_owned()),
                });
            }
        }
        if problems.is_empty() {
            Ok(BTreeMap::from([("out".to_owned(), None)]))
        } else {
            Err(problems)
        }
    }
}

/// The environment variable of an input.
fn variable(port: &str) -> String {
    let safe = |letter: char| {
        if letter.is_ascii_alphanumeric() {
            letter
        } else {
            '_'
        }
    };
    format!("IN_{}", port.chars().map(safe).collect::<String>())
}
