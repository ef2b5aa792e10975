//! What a chat template may keep in a `namespace`, its only values that outlive a turn of a loop.
//!
//! Everything else that a template makes nests as deep as its source does. What a namespace holds can grow with each turn (`set ns.n = [ns.n]`) or hold itself
//! (`set ns.n = ns`), and printing, comparing or dropping it would run out of stack, which ends the process. So every value passes a check on its way in.

use minijinja::machinery::{Token, tokenize};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Value, ValueKind};
use minijinja::{Error, ErrorKind};

/// Name of the filter; no identifier of a template that is in use begins so.
pub(super) const FILTER: &str = "__kept";

/// Lists within lists; tools' JSON schemas nest some ten.
const DEEPEST: usize = 64;
/// Bytes, of text and 64 for each value.
const LARGEST: usize = 16 << 20;

/// `source` with each value for a namespace sent through [`FILTER`]. Lines stay where they are.
///
/// # Errors
/// The library's, for a source that has no tokens.
pub(super) fn checked(source: &str, syntax: SyntaxConfig) -> Result<String, Error> {
    // Byte offsets and what goes in there, ascending.
    let mut inserts: Vec<(usize, String)> = Vec::new();
    let mut tokens = tokenize(source, false, syntax);
    while let Some(token) = tokens.next() {
        if !matches!(token?.0, Token::BlockStart) {
            continue;
        }
        if !matches!(tokens.next().transpose()?, Some((Token::Ident("set"), _))) {
            continue;
        }
        // Behind a pipe stand the filters of a block, whose arguments may be named with `=` too.
        let (mut dotted, mut block, mut value) = (false, false, None);
        for token in tokens.by_ref() {
            let (token, span) = token?;
            match token {
                Token::Dot if value.is_none() && !block => dotted = true,
                Token::Pipe if value.is_none() => block = true,
                Token::Assign if value.is_none() && !block => {
                    value = Some(span.end_offset as usize)
                }
                Token::BlockEnd => {
                    if dotted {
                        inserts.extend(value.map(|at| (at, "(".to_owned())));
                        let close = if value.is_some() { ")" } else { "" };
                        inserts.push((span.start_offset as usize, format!("{close}|{FILTER} ")));
                    }
                    break;
                }
                _ => {}
            }
        }
    }
    let mut text = source.to_owned();
    for (at, insert) in inserts.iter().rev() {
        text.insert_str(*at, insert);
    }
    Ok(text)
}

/// The filter: the value, if it ends.
pub(super) fn kept(value: Value) -> Result<Value, Error> {
    let mut left = LARGEST;
    match fits(&value, DEEPEST, &mut left) {
        Ok(()) => Ok(value),
        Err(what) => Err(Error::new(
            ErrorKind::InvalidOperation,
            format!("a namespace cannot hold {what}"),
        )),
    }
}

fn fits(value: &Value, deepest: usize, left: &mut usize) -> Result<(), &'static str> {
    const LARGE: &str = "more than 16 MiB";
    let size = 64
        + value
            .as_str()
            .map_or_else(|| value.as_bytes().map_or(0, <[u8]>::len), str::len);
    *left = left.checked_sub(size).ok_or(LARGE)?;
    let Some(object) = value.as_object() else {
        return Ok(());
    };
    if object.type_name().ends_with("::Namespace") {
        return Err("a namespace");
    }
    if !matches!(
        value.kind(),
        ValueKind::Seq | ValueKind::Map | ValueKind::Iterable
    ) {
        return Ok(());
    }
    let deeper = deepest
        .checked_sub(1)
        .ok_or("values nested more than 64 deep")?;
    let items = object.try_iter().into_iter().flatten();
    for item in items {
        fits(&item, deeper, left)?;
        if value.kind() == ValueKind::Map {
            fits(&object.get_value(&item).unwrap_or_default(), deeper, left)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(source: &str) -> String {
        super::checked(source, SyntaxConfig::default()).unwrap()
    }

    #[test]
    fn only_values_of_namespaces_are_checked() {
        for (source, expected) in [
            (
                "{% set ns.n = ns.n + 1 %}",
                "{% set ns.n =( ns.n + 1 )|__kept %}",
            ),
            ("{%- set ns.n='%}' -%}", "{%- set ns.n=('%}' )|__kept -%}"),
            (
                "{% set a, ns.b = 1, (2, 3) %}",
                "{% set a, ns.b =( 1, (2, 3) )|__kept %}",
            ),
            (
                "{% set ns.n | upper %}é{% endset %}",
                "{% set ns.n | upper |__kept %}é{% endset %}",
            ),
            (
                "{% set ns.n | f(a.b, k=1, l=2) %}",
                "{% set ns.n | f(a.b, k=1, l=2) |__kept %}",
            ),
            (
                "é{% set ns.n %}{% endset %}",
                "é{% set ns.n |__kept %}{% endset %}",
            ),
        ] {
            assert_eq!(checked(source), expected);
        }
        for source in [
            "{% set n = ns.n %}{% set n | f(ns.n, k=1) %}{% endset %}{# {% set ns.n = 1 %} #}",
            "{% raw %}{% set ns.n = 1 %}{% endraw %}",
            "{{ '{% set ns.n = 1 %}' }}set ns.n = 1",
        ] {
            assert_eq!(checked(source), source);
        }
    }
}
