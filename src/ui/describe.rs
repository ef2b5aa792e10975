//! Events as single lines of text, the same on a terminal and in a log.

use std::collections::BTreeMap;

use super::{Style, plural, seconds};
use crate::cache::Artifact;
use crate::engine::{EventKind, Level, NodeStatus};

/// The line an event is worth; `None` for what is only counted or drawn (cached and skipped nodes, progress, curves).
pub fn line(style: Style, event: &EventKind) -> Option<String> {
    match event {
        EventKind::Fetching { what } => Some(format!("{} fetching {what}", style.cyan("↓"))),
        EventKind::Log {
            level: Level::Debug,
            ..
        } => None,
        EventKind::Log {
            node,
            level,
            message,
        } => {
            let mark = if *level == Level::Warn {
                style.yellow("!")
            } else {
                style.dim("·")
            };
            let node = node
                .as_ref()
                .map(|node| format!("{node}: "))
                .unwrap_or_default();
            Some(format!("{mark} {}{message}", style.dim(&node)))
        }
        EventKind::NodeFinished {
            node,
            status,
            seconds: took,
            outputs,
            metrics,
            error,
            ..
        } => match status {
            NodeStatus::Cached | NodeStatus::Skipped => None,
            NodeStatus::Ran => {
                let details = [rows(outputs), numbers(metrics)]
                    .into_iter()
                    .filter(|part| !part.is_empty());
                let details = details
                    .map(|part| format!("  {}", style.dim(&part)))
                    .collect::<String>();
                Some(format!(
                    "{} {}  {}{details}",
                    style.green("✓"),
                    style.bold(node),
                    seconds(*took)
                ))
            }
            NodeStatus::Failed => {
                let error = error.as_deref().unwrap_or("failed");
                let first = error.lines().next().unwrap_or_default();
                Some(format!(
                    "{} {} failed after {}: {first}",
                    style.red("✗"),
                    style.bold(node),
                    seconds(*took)
                ))
            }
        },
        EventKind::RunStarted { .. }
        | EventKind::NodeStarted { .. }
        | EventKind::Progress { .. }
        | EventKind::Metric { .. }
        | EventKind::NodeReopened { .. }
        | EventKind::RunFinished { .. } => None,
    }
}

/// `857 rows`, or `kept 857 rows, dropped 12 rows`.
fn rows(outputs: &BTreeMap<String, Artifact>) -> String {
    let tables: Vec<_> = outputs
        .iter()
        .filter_map(|(name, artifact)| Some((name, artifact.rows?)))
        .collect();
    match tables.as_slice() {
        [(_, rows)] => plural(*rows, "row"),
        tables => tables
            .iter()
            .map(|(name, rows)| format!("{name} {}", plural(*rows, "row")))
            .collect::<Vec<_>>()
            .join(", "),
    }
}

/// The first few final numbers of a node.
fn numbers(metrics: &BTreeMap<String, f64>) -> String {
    const MOST: usize = 6;
    metrics
        .iter()
        .take(MOST)
        .map(|(name, value)| format!("{name} {}", number(*value)))
        .collect::<Vec<_>>()
        .join(", ")
}

/// Whole numbers as such, others with four significant digits; very small ones as `4.561e-7`.
pub fn number(value: f64) -> String {
    if value.fract() == 0.0 && value.abs() < 1e15 {
        return (value as i64).to_string();
    }
    if value.is_finite() && value.abs() < 1e-4 {
        let text = format!("{value:.3e}");
        return match text.split_once('e') {
            Some((digits, power)) => {
                format!(
                    "{}e{power}",
                    digits.trim_end_matches('0').trim_end_matches('.')
                )
            }
            None => text,
        };
    }
    let digits = (3 - value.abs().log10().floor() as i32).clamp(0, 12) as usize;
    let text = format!("{value:.digits$}");
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ArtifactKind;
    use crate::digest::Digest;

    #[test]
    fn numbers_keep_what_matters() {
        assert_eq!(
            [
                number(12.0),
                number(0.00012345),
                number(31.2567),
                number(1234.56),
                number(4.5606e-7),
                number(-2e-5),
            ],
            ["12", "0.0001234", "31.26", "1235", "4.561e-7", "-2e-5"]
        );
    }

    #[test]
    fn finished_nodes() {
        let artifact = Artifact {
            kind: ArtifactKind::Table,
            digest: Digest::of("x"),
            rows: Some(1857),
            bytes: 10,
        };
        let event = |status, error: Option<&str>| EventKind::NodeFinished {
            node: "dedup.judge".into(),
            op: "judge".into(),
            status,
            seconds: 12.3,
            fingerprint: None,
            outputs: BTreeMap::from([("verdicts".to_owned(), artifact.clone())]),
            metrics: BTreeMap::from([("kept".to_owned(), 0.75)]),
            error: error.map(str::to_owned),
        };
        let plain = Style::new(false);
        assert_eq!(
            line(plain, &event(NodeStatus::Ran, None)).unwrap(),
            "✓ dedup.judge  12.3 s  1,857 rows  kept 0.75"
        );
        assert_eq!(
            line(
                plain,
                &event(NodeStatus::Failed, Some("no such column\nat line 2"))
            )
            .unwrap(),
            "✗ dedup.judge failed after 12.3 s: no such column"
        );
        assert_eq!(line(plain, &event(NodeStatus::Cached, None)), None);
    }
}
