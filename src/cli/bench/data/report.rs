//! The measurement as tables and as JSON.

use serde_json::{Value, json};

use super::measure::{Measured, NodeCost};
use super::peer::Alone;
use crate::ui::{bytes, count, table};

pub struct Measurement {
    pub rows: u64,
    pub measured: Measured,
    pub alone: Option<Alone>,
}

/// A source of one format alone.
pub struct Reading {
    pub format: &'static str,
    /// Of the unpacked text, or of the file where it is packed by its format.
    pub bytes: u64,
    pub measured: Measured,
}

/// The exponent e in seconds ~ rows^e between two sizes: 1 is linear, 2 quadratic.
fn growth(from: (u64, f64), to: (u64, f64)) -> f64 {
    (to.1 / from.1).ln() / (to.0 as f64 / from.0 as f64).ln()
}

impl Reading {
    /// Of the source node, in 10^6 bytes per second; all cores together.
    fn rate(&self) -> f64 {
        let seconds: f64 = self.measured.nodes.iter().map(|node| node.seconds).sum();
        self.bytes as f64 / 1e6 / seconds
    }
}

pub fn text(sizes: &[Measurement], readings: &[Reading]) -> String {
    let mut rows = Vec::new();
    for (index, size) in sizes.iter().enumerate() {
        let before = index.checked_sub(1).map(|before| &sizes[before]);
        for node in &size.measured.nodes {
            rows.push(row(size, node, before));
        }
        let start = before.map(|before| (before.rows, before.measured.seconds));
        let end = (size.rows, size.measured.seconds);
        let peaks = size.measured.nodes.iter().filter_map(|node| node.peak);
        rows.push(vec![
            count(size.rows),
            "all, with plan and commit".to_owned(),
            String::new(),
            format!("{:.2}", size.measured.seconds),
            peaks.max().map_or_else(String::new, bytes),
            start.map_or_else(String::new, |start| format!("{:.2}", growth(start, end))),
            size.alone.as_ref().map_or_else(String::new, |alone| {
                format!("{:.2}", alone.nodes.iter().map(|n| n.seconds).sum::<f64>())
            }),
            String::new(),
        ]);
    }
    let header = [
        "rows", "node", "gives", "seconds", "peak", "growth", "alone s", "peak",
    ];
    let mut text = table(&header, &rows, None);
    text.push_str(
        "growth: e in seconds ~ rows^e since the size before; alone: the same SQL in DuckDB's Python package, a source as a plain load\n",
    );
    if !readings.is_empty() {
        let rows: Vec<Vec<String>> = readings
            .iter()
            .map(|reading| {
                let peaks = reading.measured.nodes.iter().filter_map(|node| node.peak);
                vec![
                    reading.format.to_owned(),
                    bytes(reading.bytes),
                    format!("{:.0}", reading.rate()),
                    peaks.max().map_or_else(String::new, bytes),
                ]
            })
            .collect();
        text.push('\n');
        text.push_str(&table(&["source", "text", "MB/s", "peak"], &rows, None));
    }
    text
}

fn row(size: &Measurement, node: &NodeCost, before: Option<&Measurement>) -> Vec<String> {
    let earlier = before.and_then(|before| {
        let nodes = &before.measured.nodes;
        let same = nodes.iter().find(|other| other.node == node.node)?;
        Some((before.rows, same.seconds))
    });
    let alone = size
        .alone
        .as_ref()
        .and_then(|alone| alone.nodes.iter().find(|other| other.node == node.node));
    vec![
        count(size.rows),
        node.node.clone(),
        count(node.rows),
        format!("{:.2}", node.seconds),
        node.peak.map_or_else(String::new, bytes),
        earlier.map_or_else(String::new, |earlier| {
            format!("{:.2}", growth(earlier, (size.rows, node.seconds)))
        }),
        alone.map_or_else(String::new, |alone| format!("{:.2}", alone.seconds)),
        alone
            .and_then(|alone| alone.peak)
            .map_or_else(String::new, bytes),
    ]
}

pub fn json(answer: u64, sizes: &[Measurement], readings: &[Reading]) -> Value {
    let of_size = |(index, size): (usize, &Measurement)| {
        let growth = index.checked_sub(1).map(|before| {
            let before = &sizes[before];
            growth(
                (before.rows, before.measured.seconds),
                (size.rows, size.measured.seconds),
            )
        });
        json!({"rows": size.rows, "flow": size.measured, "duckdb": size.alone, "growth": growth})
    };
    let readings: Vec<Value> = readings
        .iter()
        .map(|reading| {
            json!({"format": reading.format, "bytes": reading.bytes, "megabytes_per_second": reading.rate(), "flow": reading.measured})
        })
        .collect();
    json!({
        "mean_answer": answer,
        "sizes": sizes.iter().enumerate().map(of_size).collect::<Vec<_>>(),
        "sources": readings,
    })
}

#[cfg(test)]
mod tests {
    use super::growth;

    #[test]
    fn growth_is_an_exponent() {
        assert!((growth((1000, 1.0), (10_000, 10.0)) - 1.0).abs() < 1e-12);
        assert!((growth((1000, 1.0), (10_000, 100.0)) - 2.0).abs() < 1e-12);
    }
}
