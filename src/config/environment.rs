//! `${NAME}` and `${NAME:-default}` in the values of a pipeline.
//!
//! `$${` stands for a literal `${`; any other `$` is left alone, so that shell scripts and SQL keep theirs.

use super::diagnostic::{Diagnostic, Problems};
use super::yaml::{Kind, Yaml};

/// Looks a variable up; the command line hands in the process environment.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Substitutes in every text below `yaml`. An unset variable without default is a problem and leaves the text as it is.
pub fn substitute(yaml: &mut Yaml, environment: Environment, problems: &mut Problems) {
    match &mut yaml.kind {
        Kind::Text(text) => {
            if !text.contains("${") {
                return;
            }
            match expand(text, environment) {
                Ok(expanded) => {
                    *text = expanded;
                    yaml.from_env = true;
                }
                Err(problem) => problems.push(Diagnostic {
                    span: Some(yaml.span),
                    ..problem
                }),
            }
        }
        Kind::List(items) => items
            .iter_mut()
            .for_each(|item| substitute(item, environment, problems)),
        Kind::Map(entries) => entries
            .iter_mut()
            .for_each(|entry| substitute(&mut entry.value, environment, problems)),
        Kind::Null | Kind::Bool(_) | Kind::Number(_) => {}
    }
}

fn expand(text: &str, environment: Environment) -> Result<String, Diagnostic> {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(place) = rest.find("${") {
        let (before, after) = (&rest[..place], &rest[place + 2..]);
        if let Some(before) = before.strip_suffix('$') {
            expanded.push_str(before);
            expanded.push_str("${");
            rest = after;
            continue;
        }
        expanded.push_str(before);
        let literal = "write `$${` for a literal `${`";
        let Some(end) = after.find('}') else {
            return Err(Diagnostic::without_place("`${` is not closed by `}`").help(literal));
        };
        let (name, default) = match after[..end].split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (&after[..end], None),
        };
        if name.is_empty()
            || !name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        {
            return Err(Diagnostic::without_place(format!(
                "`${{{name}}}` does not name an environment variable"
            ))
            .help(literal));
        }
        let value = match default {
            Some(default) => environment(name)
                .filter(|value| !value.is_empty())
                .unwrap_or_else(|| default.to_owned()),
            None => environment(name).ok_or_else(|| {
                let help = format!("set it, give a default as `${{{name}:-…}}`, or {literal}");
                Diagnostic::without_place(format!("the environment variable `{name}` is not set"))
                    .help(help)
            })?,
        };
        expanded.push_str(&value);
        rest = &after[end + 1..];
    }
    expanded.push_str(rest);
    Ok(expanded)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(text: &str) -> Result<String, String> {
        let environment = |name: &str| match name {
            "HOME" => Some("/home/ada".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        };
        expand(text, &environment).map_err(|problem| problem.message)
    }

    #[test]
    fn substitutes_values_and_defaults() {
        assert_eq!(expanded("${HOME}/x").unwrap(), "/home/ada/x");
        assert_eq!(expanded("${NOPE:-data}/${EMPTY:-b}").unwrap(), "data/b");
        assert_eq!(expanded("[${EMPTY}]").unwrap(), "[]");
    }

    #[test]
    fn leaves_other_dollars_alone() {
        assert_eq!(
            expanded("echo $$ $OUT $(pwd) ${NOPE:-$x}").unwrap(),
            "echo $$ $OUT $(pwd) $x"
        );
        assert_eq!(expanded("$${HOME}").unwrap(), "${HOME}");
    }

    #[test]
    fn names_what_is_missing() {
        assert_eq!(
            expanded("${NOPE}").unwrap_err(),
            "the environment variable `NOPE` is not set"
        );
        assert_eq!(expanded("${HOME").unwrap_err(), "`${` is not closed by `}`");
        assert_eq!(
            expanded("${a b}").unwrap_err(),
            "`${a b}` does not name an environment variable"
        );
    }
}
