//! Checks a value against a JSON Schema, as far as the schemas of this program go; a keyword that is not known here fails
//! the test rather than being passed over.

use serde_json::Value;

/// Words that describe and ask for nothing.
const REMARKS: [&str; 7] = [
    "$schema",
    "$defs",
    "title",
    "description",
    "default",
    "format",
    "minimum",
];

/// Every place where `value` is not as `schema` says. References lead into `root`.
pub fn complaints(root: &Value, schema: &Value, value: &Value, place: &str) -> Vec<String> {
    let rules = match schema {
        Value::Bool(true) => return Vec::new(),
        Value::Object(rules) => rules,
        other => panic!("no schema: {other}"),
    };
    let mut found = Vec::new();
    for (keyword, rule) in rules {
        let list = || {
            rule.as_array()
                .unwrap_or_else(|| panic!("{keyword}: {rule}"))
        };
        match keyword.as_str() {
            "type" => {
                let is = |kind: &Value| has_type(value, kind.as_str().unwrap());
                let fits = match rule {
                    Value::Array(kinds) => kinds.iter().any(is),
                    kind => is(kind),
                };
                if !fits {
                    found.push(format!("{place} is no {rule}: {value}"));
                }
            }
            "enum" if !list().contains(value) => {
                found.push(format!("{place} is {value}, none of {rule}"))
            }
            "enum" => {}
            "required" => {
                let missing = list()
                    .iter()
                    .filter(|name| value.get(name.as_str().unwrap()).is_none());
                found.extend(missing.map(|name| format!("{place} has no {name}")));
            }
            "properties" | "additionalProperties" => {
                let declared = rules.get("properties");
                for (name, inner) in value.as_object().into_iter().flatten() {
                    let place = format!("{place}.{name}");
                    match declared.and_then(|all| all.get(name)) {
                        Some(own) if keyword == "properties" => {
                            found.extend(complaints(root, own, inner, &place))
                        }
                        None if keyword == "additionalProperties" && *rule == false => {
                            found.push(format!("{place} is not known"))
                        }
                        None if keyword == "additionalProperties" => {
                            found.extend(complaints(root, rule, inner, &place))
                        }
                        _ => {}
                    }
                }
            }
            "items" => {
                for (index, inner) in value.as_array().into_iter().flatten().enumerate() {
                    found.extend(complaints(root, rule, inner, &format!("{place}[{index}]")));
                }
            }
            "$ref" => {
                let path = rule
                    .as_str()
                    .and_then(|path| path.strip_prefix('#'))
                    .expect("a reference into the schema");
                let target = root
                    .pointer(path)
                    .unwrap_or_else(|| panic!("{rule} leads nowhere"));
                found.extend(complaints(root, target, value, place));
            }
            "anyOf" | "oneOf" => {
                let fits = list()
                    .iter()
                    .any(|schema| complaints(root, schema, value, place).is_empty());
                if !fits {
                    found.push(format!("{place} fits none of {rule}: {value}"));
                }
            }
            "const" if rule != value => found.push(format!("{place} is {value}, not {rule}")),
            "const" => {}
            remark if REMARKS.contains(&remark) => {}
            unknown => panic!("the keyword `{unknown}` is not known here"),
        }
    }
    found
}

fn has_type(value: &Value, kind: &str) -> bool {
    match kind {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("the type `{other}` is not known here"),
    }
}
