//! One row of history, as the journal keeps it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A row, and what it is a point of. Values are kept as the text they are sent as, so that a row that is sent again, even by
/// another process, is the same byte for byte.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// Which node, with which fingerprint, says what.
    pub series: String,
    /// The place on the series' own axis; a series has each place once, in rising order.
    pub at: u64,
    /// JSON text by key, with `_step`, `_runtime` and `_timestamp`.
    pub fields: BTreeMap<String, String>,
}

impl Row {
    /// The line of `wandb-history.jsonl`.
    pub fn line(&self) -> String {
        object(&self.fields)
    }

    /// Seconds since the tracked run first started.
    pub fn runtime(&self) -> f64 {
        let text = self.fields.get("_runtime");
        text.and_then(|text| text.parse().ok()).unwrap_or_default()
    }
}

/// A JSON object of values that are text already; bare words stay what they are.
pub fn object(fields: &BTreeMap<String, String>) -> String {
    let field = |(key, value): (&String, &String)| {
        format!("{}:{value}", serde_json::Value::from(key.as_str()))
    };
    let fields: Vec<_> = fields.iter().map(field).collect();
    format!("{{{}}}", fields.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_keeps_bare_words() {
        let fields = [
            ("_step", "3"),
            ("train/loss", "NaN"),
            ("a \"b\"", "0.5"),
            ("_runtime", "1.250"),
        ];
        let row = Row {
            series: "train".into(),
            at: 12,
            fields: fields
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
        };
        assert_eq!(
            row.line(),
            r#"{"_runtime":1.250,"_step":3,"a \"b\"":0.5,"train/loss":NaN}"#
        );
        assert_eq!(row.runtime(), 1.25);
        let text = serde_json::to_string(&row).unwrap();
        assert_eq!(serde_json::from_str::<Row>(&text).unwrap(), row);
    }
}
