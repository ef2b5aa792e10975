//! The last value of everything, made from the rows.

use std::collections::BTreeMap;

use super::row::{Row, object};

#[derive(Debug, Clone, Default)]
pub struct Summary {
    fields: BTreeMap<String, String>,
}

impl Summary {
    pub fn add(&mut self, row: &Row) {
        self.fields.extend(row.fields.clone());
    }

    /// The values, and `_wandb` with the run time in whole seconds.
    pub fn fields(&self) -> BTreeMap<String, String> {
        let mut fields = self.fields.clone();
        let runtime = fields
            .get("_runtime")
            .and_then(|text| text.parse::<f64>().ok());
        let runtime = runtime.unwrap_or_default() as u64;
        fields.insert("_wandb".to_owned(), format!("{{\"runtime\":{runtime}}}"));
        fields
    }

    /// The one line of `wandb-summary.json`.
    pub fn line(&self) -> String {
        object(&self.fields())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_value_stays() {
        let row = |fields: &[(&str, &str)]| Row {
            series: String::new(),
            at: 0,
            fields: fields
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
        };
        let mut summary = Summary::default();
        summary.add(&row(&[
            ("loss", "2"),
            ("_step", "0"),
            ("_runtime", "1.500"),
        ]));
        summary.add(&row(&[
            ("f1", "0.5"),
            ("_step", "1"),
            ("_runtime", "2.900"),
        ]));
        summary.add(&row(&[
            ("loss", "NaN"),
            ("_step", "2"),
            ("_runtime", "3.100"),
        ]));
        assert_eq!(
            summary.line(),
            r#"{"_runtime":3.100,"_step":2,"_wandb":{"runtime":3},"f1":0.5,"loss":NaN}"#
        );
    }
}
