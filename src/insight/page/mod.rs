//! Pages: MiniJinja templates with one style sheet, everything in one file. Values are escaped; charts come as markup.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, Error, UndefinedBehavior, Value};
use serde::Serialize;

/// Fills a template (`report.html`, `compare.html`, `group.html`).
pub(super) fn render(template: &str, page: &impl Serialize) -> Result<String, Error> {
    let mut templates = Environment::new();
    templates.set_undefined_behavior(UndefinedBehavior::Strict);
    templates.set_syntax(
        SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()?,
    );
    templates.add_template("style.css", include_str!("style.css"))?;
    templates.add_template("parts.html", include_str!("parts.html"))?;
    templates.add_template("report.html", include_str!("report.html"))?;
    templates.add_template("compare.html", include_str!("compare.html"))?;
    templates.add_template("group.html", include_str!("group.html"))?;
    templates
        .get_template(template)?
        .render(Value::from(Serde(page)))
}
