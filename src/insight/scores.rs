//! Scores by row: which tables have them, and what their columns measure.

use super::Tables;
use crate::cache::{CacheError, quote};
use crate::runs::Run;

/// A table with scores, found by the op that reads or makes it.
#[derive(Debug, Clone, PartialEq)]
pub struct Scored {
    /// The stage, for people.
    pub stage: String,
    /// Full output name.
    pub table: String,
    /// F1 and exact match first.
    pub metrics: Vec<Metric>,
    pub seed: u64,
    /// The table with the totals of all rows, where `bootstrap` made it.
    pub summary: Option<String>,
}

/// A metric and the column that holds it; where two models are compared, one column for each.
#[derive(Debug, Clone, PartialEq)]
pub struct Metric {
    pub name: String,
    pub base: Option<String>,
    pub value: String,
}

impl Metric {
    /// What stands before the metric's name in its column: `tuned_` of `tuned_f1`.
    fn prefix(column: &str, name: &str) -> String {
        column.strip_suffix(name).unwrap_or_default().to_owned()
    }

    /// The columns with the texts that were scored: of the base, and of the other.
    pub fn predictions(&self) -> (Option<String>, String) {
        let column = |score: &str| format!("{}prediction", Self::prefix(score, &self.name));
        (self.base.as_deref().map(column), column(&self.value))
    }
}

/// Tables that `bootstrap` compares; for stages without it, those that `score` made.
pub fn scored(run: &Run) -> Vec<Scored> {
    let nodes = &run.graph.nodes;
    let mut found: Vec<Scored> = Vec::new();
    for node in nodes.iter().filter(|node| node.op == "bootstrap") {
        let Some(origin) = node.inputs.get("rows") else {
            continue;
        };
        let metric = |(name, columns): (&String, &String)| {
            let name = name.strip_prefix("metrics.")?;
            let [base, value] = serde_json::from_str::<[String; 2]>(columns).ok()?;
            Some(Metric {
                name: name.to_owned(),
                base: Some(base),
                value,
            })
        };
        found.push(Scored {
            stage: node.stage.clone(),
            table: origin.to_string(),
            metrics: node.manifest.params.iter().filter_map(metric).collect(),
            seed: node.manifest.seed,
            summary: Some(format!("{}.rows", node.name)),
        });
    }
    for node in nodes.iter().filter(|node| node.op == "score") {
        if found.iter().any(|other| other.stage == node.stage) {
            continue;
        }
        let metric = |name: &str| Metric {
            name: name.to_owned(),
            base: None,
            value: name.to_owned(),
        };
        found.push(Scored {
            stage: node.name.clone(),
            table: format!("{}.rows", node.name),
            metrics: ["exact_match", "f1"].map(metric).into(),
            seed: node.manifest.seed,
            summary: None,
        });
    }
    found.retain(|scored| !scored.metrics.is_empty());
    for scored in &mut found {
        let usual = ["f1", "exact_match"];
        let place = |metric: &Metric| usual.iter().position(|name| metric.name == *name);
        scored
            .metrics
            .sort_by_key(|metric| place(metric).unwrap_or(usual.len()));
    }
    found
}

impl Scored {
    /// The metric that says most: F1 where there is one.
    pub fn main_metric(&self) -> &Metric {
        self.metrics
            .iter()
            .find(|metric| metric.name == "f1")
            .unwrap_or(&self.metrics[0])
    }

    /// The values of a column by id, sorted; rows where it is null are left out.
    pub fn values(&self, tables: &Tables, column: &str) -> Result<Vec<(String, f64)>, CacheError> {
        let column = quote(column);
        let sql = format!(
            "select id::varchar, {column}::double from scored where {column} is not null order by id"
        );
        let rows = tables.query(&[("scored", &self.table)], &sql)?;
        let value = |cells: &Vec<crate::ops::Cell>| {
            Some((cells[0].as_str()?.to_owned(), cells[1].as_f64()?))
        };
        Ok(rows.rows.iter().filter_map(value).collect())
    }
}
