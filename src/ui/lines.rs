//! Events as plain lines, for logs and pipes.

use std::collections::HashMap;
use std::io::{self, Write as _};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::describe::line;
use super::{Style, count, seconds};
use crate::engine::{Event, EventKind, Progress, Sink};

/// How often a node says how far it is.
const EVERY: Duration = Duration::from_secs(10);

/// Writes a line for each event that is worth one, and at most one line of progress per node in ten seconds.
pub struct Lines {
    style: Style,
    nodes: Mutex<HashMap<String, Seen>>,
}

/// Progress of a node when it was last told, and when it was first heard of.
struct Seen {
    told: Instant,
    first: (Instant, u64),
}

impl Lines {
    pub fn new(style: Style) -> Self {
        Self {
            style,
            nodes: Mutex::default(),
        }
    }

    fn progress(&self, node: &str, progress: &Progress) -> Option<String> {
        let now = Instant::now();
        let mut nodes = self
            .nodes
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        let first = match nodes.get_mut(node) {
            Some(seen) if now - seen.told < EVERY => return None,
            Some(seen) => {
                seen.told = now;
                seen.first
            }
            None => {
                nodes.insert(
                    node.to_owned(),
                    Seen {
                        told: now,
                        first: (now, progress.done),
                    },
                );
                (now, progress.done)
            }
        };
        Some(format!(
            "  {node}: {}",
            progress_text(
                progress,
                now - first.0,
                progress.done.saturating_sub(first.1)
            )
        ))
    }
}

/// `120/500 steps, 3.2/s, 2 m 03 s left, loss 1.93`; the rate is that of `done` units in `elapsed`.
fn progress_text(progress: &Progress, elapsed: Duration, done: u64) -> String {
    let total = if progress.total > 0 {
        format!("/{}", count(progress.total))
    } else {
        String::new()
    };
    let mut text = format!("{}{total} {}", count(progress.done), progress.unit);
    let rate = done as f64 / elapsed.as_secs_f64().max(1e-9);
    if done > 0 && elapsed > Duration::from_millis(100) {
        // Two digits that say something: steps of a training take long.
        let digits = (1 - rate.log10().floor() as i32).clamp(1, 6) as usize;
        text.push_str(&format!(", {rate:.digits$}/s"));
        if progress.total > progress.done {
            text.push_str(&format!(
                ", {} left",
                seconds((progress.total - progress.done) as f64 / rate)
            ));
        }
    }
    if !progress.note.is_empty() {
        text.push_str(&format!(", {}", progress.note));
    }
    text
}

impl Sink for Lines {
    fn event(&self, event: &Event) {
        let text = match &event.kind {
            EventKind::Progress { node, progress } => self.progress(node, progress),
            other => line(self.style, other),
        };
        if let Some(text) = text {
            // A closed pipe must not end the run.
            let _ = writeln!(io::stderr(), "{text}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_tells_rate_and_time_left() {
        let progress = Progress {
            done: 120,
            total: 500,
            unit: "steps".into(),
            note: "loss 1.93".into(),
        };
        assert_eq!(
            progress_text(&progress, Duration::from_secs(10), 40),
            "120/500 steps, 4.0/s, 1 m 35 s left, loss 1.93"
        );
        assert_eq!(
            progress_text(&progress, Duration::ZERO, 0),
            "120/500 steps, loss 1.93"
        );
        let unknown = Progress {
            done: 2000,
            total: 0,
            unit: "rows".into(),
            note: String::new(),
        };
        assert_eq!(
            progress_text(&unknown, Duration::from_secs(1), 2000),
            "2,000 rows, 2000.0/s"
        );
        assert_eq!(
            progress_text(&progress, Duration::from_secs(1000), 45),
            "120/500 steps, 0.045/s, 2 h 20 m left, loss 1.93"
        );
    }

    #[test]
    fn a_node_tells_its_progress_once_in_a_while() {
        let lines = Lines::new(Style::new(false));
        let progress = |done| Progress {
            done,
            total: 10,
            unit: "rows".into(),
            note: String::new(),
        };
        assert_eq!(
            lines.progress("a", &progress(1)).as_deref(),
            Some("  a: 1/10 rows")
        );
        assert_eq!(lines.progress("a", &progress(2)), None);
        assert_eq!(
            lines.progress("b", &progress(2)).as_deref(),
            Some("  b: 2/10 rows")
        );
    }
}
