//! What the ops of language models share: params for precision and device, and conversations from rows.

use minijinja::{Environment, UndefinedBehavior};
use serde::Deserialize;
use serde_json::Value;

use super::{OpError, Problem};
use crate::config::{Columns, Param, ParamKind};
use crate::graph::{Node, Resources};

/// Precision of frozen weights: as stored, row-wise 8 bit (integers or floating point), or 4-bit NormalFloat with double
/// quantisation.
pub(super) const PRECISION_CHOICES: [&str; 4] = ["none", "int8", "fp8", "nf4"];

/// Those of a base that an adapter is trained on.
pub(super) const BASE_CHOICES: [&str; 3] = ["none", "int8", "nf4"];

/// Precision of the arithmetic.
pub(super) fn dtype_param() -> Param {
    let choices = ["auto", "f32", "bf16"].map(String::from).to_vec();
    Param::default(
        ParamKind::Choice(choices),
        "auto",
        "Precision of the arithmetic; auto is bf16 where the processor computes it natively.",
    )
}

pub(super) fn quant_param(choices: &[&str], default: &str) -> Param {
    Param::default(
        ParamKind::Choice(choices.iter().copied().map(String::from).collect()),
        default,
        "Precision of the frozen weights.",
    )
}

/// A model takes the GPU where there is one, and all cores else.
pub(super) fn all_slots() -> Resources {
    Resources {
        cpu: u32::MAX,
        gpu: 1,
    }
}

/// How a row becomes a conversation.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Chat {
    pub(super) system: String,
    pub(super) user: String,
    pub(super) response: String,
}

impl Chat {
    pub(super) fn param() -> Param {
        let text = |default: &str, doc: &str| Param::default(ParamKind::Text, default, doc);
        let fields = [
            (
                "system",
                text(
                    "",
                    "System message (a MiniJinja template); none when empty.",
                ),
            ),
            (
                "user",
                text("{{ question }}", "User message (a MiniJinja template)."),
            ),
            ("response", text("answer", "The column with the response.")),
        ];
        let fields = fields
            .into_iter()
            .map(|(name, param)| (name.to_owned(), param))
            .collect();
        Param::default(
            ParamKind::Record(fields),
            serde_json::json!({}),
            "How a row becomes a conversation.",
        )
    }

    /// Parses both templates once, for many rows.
    pub(super) fn templates(&self) -> Result<ChatTemplates, Problem> {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        for (name, source) in [("chat.system", &self.system), ("chat.user", &self.user)] {
            environment
                .add_template_owned(name, source.clone())
                .map_err(|error| Problem {
                    at: name.to_owned(),
                    message: error.to_string(),
                    help: Some(
                        "messages are MiniJinja templates over the columns of the row".to_owned(),
                    ),
                })?;
        }
        Ok(ChatTemplates {
            environment,
            has_system: !self.system.is_empty(),
        })
    }

    /// Names the columns that are not there.
    pub(super) fn check(&self, columns: Option<&Columns>, with_response: bool) -> Vec<Problem> {
        let templates = match self.templates() {
            Ok(templates) => templates,
            Err(problem) => return vec![problem],
        };
        let Some(columns) = columns else {
            return Vec::new();
        };
        let mut wanted = templates.undeclared();
        if with_response {
            wanted.push(("chat.response", self.response.clone()));
        }
        let missing = wanted
            .into_iter()
            .filter(|(_, name)| !columns.iter().any(|(column, _)| column == name));
        missing
            .map(|(at, name)| missing_column(at, &name, columns))
            .collect()
    }
}

/// The problem of a param that names a column which is not there.
pub(super) fn missing_column(at: &str, name: &str, columns: &Columns) -> Problem {
    let there: Vec<_> = columns
        .iter()
        .map(|(column, _)| format!("`{column}`"))
        .collect();
    Problem {
        at: at.to_owned(),
        message: format!("the input has no column `{name}`"),
        help: Some(format!("its columns are {}", there.join(", "))),
    }
}

/// Checks the param `chat` of a node against the columns of its rows.
pub(super) fn check_chat(
    node: &Node,
    columns: Option<&Columns>,
    with_response: bool,
) -> Result<(), Vec<Problem>> {
    let value = node.params.get("chat").cloned().unwrap_or_default();
    let problems = match serde_json::from_value::<Chat>(value) {
        Ok(chat) => chat.check(columns, with_response),
        Err(error) => vec![Problem {
            at: "chat".to_owned(),
            message: error.to_string(),
            help: None,
        }],
    };
    if problems.is_empty() {
        Ok(())
    } else {
        Err(problems)
    }
}

pub(super) struct ChatTemplates {
    environment: Environment<'static>,
    has_system: bool,
}

impl ChatTemplates {
    fn undeclared(&self) -> Vec<(&'static str, String)> {
        let mut found = Vec::new();
        for name in ["chat.system", "chat.user"] {
            if let Ok(template) = self.environment.get_template(name) {
                found.extend(
                    template
                        .undeclared_variables(false)
                        .into_iter()
                        .map(|column| (name, column)),
                );
            }
        }
        found.sort();
        found
    }

    /// `(role, content)` of the messages before the response.
    #[cfg_attr(
        not(any(feature = "torch", test)),
        expect(dead_code, reason = "called by the language-model runtime")
    )]
    pub(super) fn render(&self, row: &Value) -> Result<Vec<(String, String)>, OpError> {
        let context = minijinja::Value::from(minijinja::value::Serde(row));
        let render = |name: &str| -> Result<String, OpError> {
            let template = self
                .environment
                .get_template(name)
                .map_err(|error| OpError::new(error.to_string()))?;
            template
                .render(context.clone())
                .map_err(|error| OpError::new(error.to_string()))
        };
        let mut messages = Vec::new();
        if self.has_system {
            messages.push(("system".to_owned(), render("chat.system")?));
        }
        messages.push(("user".to_owned(), render("chat.user")?));
        Ok(messages)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn chat(system: &str, user: &str) -> Chat {
        Chat {
            system: system.to_owned(),
            user: user.to_owned(),
            response: "answer".to_owned(),
        }
    }

    #[test]
    fn an_empty_system_message_is_left_out() {
        let messages = chat("", "Q: {{ question }}")
            .templates()
            .unwrap()
            .render(&json!({ "question": "why?" }))
            .unwrap();
        assert_eq!(messages, [("user".to_owned(), "Q: why?".to_owned())]);
        let messages = chat("S", "{{ question }}")
            .templates()
            .unwrap()
            .render(&json!({ "question": "why?" }))
            .unwrap();
        assert_eq!(messages[0], ("system".to_owned(), "S".to_owned()));
    }

    #[test]
    fn missing_columns_are_named_with_their_param() {
        let columns = vec![("question".to_owned(), "VARCHAR".to_owned())];
        let problems = chat("", "{{ qestion }}").check(Some(&columns), true);
        let at: Vec<_> = problems.iter().map(|problem| problem.at.as_str()).collect();
        assert_eq!(at, ["chat.user", "chat.response"]);
    }
}
