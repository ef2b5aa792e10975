//! Judge prompts: a MiniJinja template with the blocks `system` and `user`, and an expression for the allowed answers.

use minijinja::{Environment, ErrorKind, UndefinedBehavior};
use serde_json::Value;

use crate::ops::Problem;

#[derive(Debug)]
pub(super) struct PromptTemplate {
    environment: Environment<'static>,
    choices: String,
    has_system: bool,
}

/// A prompt ready for a chat template, and the integers that may be answered.
#[derive(Debug, Clone)]
pub(super) struct Rendered {
    pub(super) system: Option<String>,
    pub(super) user: String,
    pub(super) choices: Vec<i64>,
    /// The row itself, to render again: with a shorter text where the prompt does not fit, or in another process.
    pub(super) row: Value,
}

const NAME: &str = "prompt";

impl PromptTemplate {
    /// Parses the template and the expression; errors name the line.
    pub(super) fn parse(source: &str, choices: &str) -> Result<Self, Problem> {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment
            .add_template_owned(NAME, source.to_owned())
            .map_err(|error| problem("prompt", &error))?;
        environment
            .compile_expression(choices)
            .map_err(|error| problem("choices", &error))?;
        if !source.contains("block user") {
            let message = "the prompt has no block `user`".to_owned();
            let help = Some(
                "write `{% block user %}…{% endblock %}` around what the judge is asked".to_owned(),
            );
            return Err(Problem {
                at: "prompt".to_owned(),
                message,
                help,
            });
        }
        let has_system = source.contains("block system");
        Ok(Self {
            environment,
            choices: choices.to_owned(),
            has_system,
        })
    }

    /// The columns that the prompt and the choices read, each with the param it stands in.
    pub(super) fn undeclared(&self) -> Vec<(&'static str, String)> {
        let mut found = Vec::new();
        if let Ok(template) = self.environment.get_template(NAME) {
            found.extend(
                template
                    .undeclared_variables(false)
                    .into_iter()
                    .map(|name| ("prompt", name)),
            );
        }
        if let Ok(expression) = self.environment.compile_expression(&self.choices) {
            found.extend(
                expression
                    .undeclared_variables(false)
                    .into_iter()
                    .map(|name| ("choices", name)),
            );
        }
        found.retain(|(_, name)| !["range", "loop", "dict", "namespace"].contains(&name.as_str()));
        found.sort();
        found
    }

    pub(super) fn render(&self, row: &Value) -> Result<Rendered, String> {
        let context = minijinja::Value::from(minijinja::value::Serde(row));
        let template = self
            .environment
            .get_template(NAME)
            .map_err(|error| explain(&error))?;
        let mut captured = template
            .render_captured(context.clone())
            .map_err(|error| explain(&error))?;
        let mut block = |name: &str| {
            captured
                .with_state_mut(|state| state.render_block(name))
                .map_err(|error| explain(&error))
        };
        let system = if self.has_system {
            Some(block("system")?)
        } else {
            None
        };
        let user = block("user")?;
        let expression = self
            .environment
            .compile_expression(&self.choices)
            .map_err(|error| explain(&error))?;
        let list = expression.eval(context).map_err(|error| explain(&error))?;
        let mut choices = Vec::new();
        for item in list.try_iter().map_err(|error| explain(&error))? {
            choices.push(
                i64::try_from(item.clone())
                    .map_err(|_| format!("`choices` gives `{item}`, which is no integer"))?,
            );
        }
        if choices.is_empty() {
            return Err("`choices` gives an empty list".to_owned());
        }
        Ok(Rendered {
            system,
            user,
            choices,
            row: row.clone(),
        })
    }
}

#[cfg(any(feature = "torch", test))]
impl Rendered {
    /// The row with `column` (a text or a list of texts) cut to about `keep` of its length, `0.0..1.0`.
    pub(super) fn shortened(&self, column: &str, keep: f64) -> Value {
        let mut row = self.row.clone();
        if let Some(value) = row.get_mut(column) {
            shorten(value, keep);
        }
        row
    }
}

#[cfg(any(feature = "torch", test))]
fn shorten(value: &mut Value, keep: f64) {
    match value {
        Value::String(text) => {
            let count = text.chars().count();
            let end = text
                .char_indices()
                .nth((count as f64 * keep) as usize)
                .map_or(text.len(), |(at, _)| at);
            text.truncate(end);
        }
        Value::Array(items) => items.iter_mut().for_each(|item| shorten(item, keep)),
        _ => {}
    }
}

fn problem(at: &str, error: &minijinja::Error) -> Problem {
    Problem {
        at: at.to_owned(),
        message: explain(error),
        help: Some("prompts are MiniJinja templates over the columns of the row".to_owned()),
    }
}

fn explain(error: &minijinja::Error) -> String {
    let line = error
        .line()
        .map_or(String::new(), |line| format!("line {line}: "));
    match (error.kind(), error.detail()) {
        (ErrorKind::UndefinedError, Some(detail)) => {
            format!("{line}{detail} is not a column of the row")
        }
        (_, Some(detail)) => format!("{line}{detail}"),
        (kind, None) => format!("{line}{kind}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const SOURCE: &str = "{% block system %}S{% endblock %}{% block user %}{{ question }}{% for a in answers %} {{ loop.index }}:{{ a }}{% endfor %}{% endblock %}";

    #[test]
    fn renders_blocks_and_choices() {
        let template = PromptTemplate::parse(SOURCE, "range(0, answers | length + 1)").unwrap();
        let rendered = template
            .render(&json!({ "question": "q", "answers": ["x", "y"] }))
            .unwrap();
        assert_eq!(rendered.system.as_deref(), Some("S"));
        assert_eq!(rendered.user, "q 1:x 2:y");
        assert_eq!(rendered.choices, [0, 1, 2]);
        let names: Vec<_> = template.undeclared();
        assert_eq!(
            names,
            [
                ("choices", "answers".to_owned()),
                ("prompt", "answers".to_owned()),
                ("prompt", "question".to_owned())
            ]
        );
    }

    #[test]
    fn a_missing_column_is_named() {
        let template = PromptTemplate::parse(SOURCE, "[0, 1]").unwrap();
        let message = template.render(&json!({ "answers": [] })).unwrap_err();
        assert!(message.contains("line 1"), "{message}");
    }

    #[test]
    fn shortening_cuts_every_text() {
        let template = PromptTemplate::parse(SOURCE, "[0]").unwrap();
        let rendered = template
            .render(&json!({ "question": "q", "answers": ["abcd", "äöüß"] }))
            .unwrap();
        assert_eq!(
            rendered.shortened("answers", 0.5),
            json!({ "question": "q", "answers": ["ab", "äö"] })
        );
    }

    #[test]
    fn bad_templates_are_problems() {
        assert!(PromptTemplate::parse("{% block user %}{{ x", "[0]").is_err());
        assert!(PromptTemplate::parse(SOURCE, "range(").is_err());
        assert!(
            PromptTemplate::parse("no block", "[0]")
                .unwrap_err()
                .message
                .contains("block `user`")
        );
    }
}
