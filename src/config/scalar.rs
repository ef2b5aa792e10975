//! What a plain YAML scalar means: the core schema of YAML 1.2.2, section 10.3.2.

use serde_json::Number;

use super::yaml::Kind;

/// `yes`, `no`, `on` and `off` are text, as YAML 1.2 has it; so are `.inf` and `.nan`, which no param takes.
pub fn resolve(text: &str) -> Kind {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Kind::Null,
        "true" | "True" | "TRUE" => return Kind::Bool(true),
        "false" | "False" | "FALSE" => return Kind::Bool(false),
        _ => {}
    }
    number(text).map_or_else(|| Kind::Text(text.to_owned()), Kind::Number)
}

fn number(text: &str) -> Option<Number> {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    if let Some(digits) = text.strip_prefix("0x") {
        return u64::from_str_radix(digits, 16).ok().map(Number::from);
    }
    if let Some(digits) = text.strip_prefix("0o") {
        return u64::from_str_radix(digits, 8).ok().map(Number::from);
    }
    if !unsigned.starts_with(|first: char| first.is_ascii_digit() || first == '.') {
        return None;
    }
    if !unsigned
        .bytes()
        .all(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b'e' | b'E' | b'+' | b'-'))
    {
        return None;
    }
    let whole = text.strip_prefix('+').unwrap_or(text);
    if let Ok(integer) = whole.parse::<i64>() {
        return Some(integer.into());
    }
    if let Ok(integer) = whole.parse::<u64>() {
        return Some(integer.into());
    }
    whole.parse::<f64>().ok().and_then(Number::from_f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_the_core_schema() {
        let number = |text: &str| match resolve(text) {
            Kind::Number(number) => Some(number.to_string()),
            _ => None,
        };
        assert_eq!(number("3407").as_deref(), Some("3407"));
        assert_eq!(number("-7").as_deref(), Some("-7"));
        assert_eq!(
            number("18446744073709551615").as_deref(),
            Some("18446744073709551615")
        );
        assert_eq!(number("5e-5").as_deref(), Some("0.00005"));
        assert_eq!(number(".5").as_deref(), Some("0.5"));
        assert_eq!(number("0x1f").as_deref(), Some("31"));
        for text in [
            "1.2.3",
            "2026-11-23",
            "yes",
            "no",
            ".inf",
            "-",
            "+",
            ".",
            "1e",
            "12:30",
            "0xg",
        ] {
            assert_eq!(resolve(text), Kind::Text(text.to_owned()));
        }
        assert_eq!(resolve("~"), Kind::Null);
        assert_eq!(resolve("True"), Kind::Bool(true));
    }
}
