//! Which output of a run is meant: `node`, `node.output`, `stage` or `stage.output`.

use super::{NodeOutput, RunView};
use crate::config::suggest;

#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    #[error("`{name}` gave nothing in the run {run}")]
    Empty { run: String, name: String },
    #[error("`{name}` has several outputs")]
    Several { name: String, outputs: Vec<String> },
    #[error("the run {run} has no output `{name}`")]
    Unknown {
        run: String,
        name: String,
        outputs: Vec<String>,
    },
}

impl OutputError {
    /// The next step.
    pub fn help(&self) -> String {
        match self {
            Self::Empty { run, name } => format!("`flow why {run} {name}` says what happened"),
            Self::Several { outputs, .. } => {
                format!(
                    "name one: {}",
                    suggest::list(outputs.iter().map(String::as_str))
                )
            }
            Self::Unknown { name, outputs, .. } => {
                let names = || outputs.iter().map(String::as_str);
                let guess = suggest::closest(name, names())
                    .map(|name| format!("did you mean `{name}`? "))
                    .unwrap_or_default();
                format!("{guess}there are {}", suggest::list(names()))
            }
        }
    }
}

impl RunView {
    /// The output that `name` means.
    pub fn output(&self, name: &str) -> Result<NodeOutput<'_>, OutputError> {
        let name = self.head.exports.get(name).map_or(name, String::as_str);
        let all = || {
            self.nodes.iter().flat_map(|node| {
                node.outputs.iter().map(|output| NodeOutput {
                    node: &node.name,
                    output,
                })
            })
        };
        let by_full_name = |full: &str| all().find(|output| output.full() == full);
        if let Some(output) = by_full_name(name) {
            return Ok(output);
        }
        if let Some(node) = self.node(name) {
            return match node.outputs.as_slice() {
                [output] => Ok(NodeOutput {
                    node: &node.name,
                    output,
                }),
                [] => Err(OutputError::Empty {
                    run: self.head.id.clone(),
                    name: name.to_owned(),
                }),
                several => Err(OutputError::Several {
                    name: name.to_owned(),
                    outputs: several
                        .iter()
                        .map(|output| format!("{name}.{}", output.name))
                        .collect(),
                }),
            };
        }
        // A stage: its one output, or the list of them.
        let of_stage: Vec<_> = self
            .head
            .exports
            .iter()
            .filter(|(full, _)| full.split_once('.').is_some_and(|(stage, _)| stage == name))
            .collect();
        if let [(_, target)] = of_stage.as_slice()
            && let Some(output) = by_full_name(target)
        {
            return Ok(output);
        }
        let outputs = if of_stage.is_empty() {
            all()
                .map(|output| output.full())
                .chain(self.head.exports.keys().cloned())
                .collect()
        } else {
            of_stage.iter().map(|(full, _)| (*full).clone()).collect()
        };
        Err(OutputError::Unknown {
            run: self.head.id.clone(),
            name: name.to_owned(),
            outputs,
        })
    }
}
