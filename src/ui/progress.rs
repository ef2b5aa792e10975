//! Bars on a terminal: one for the run, one for each node that says how far it is.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::Style;
use super::describe::line;
use crate::engine::{self, Event, EventKind, NodeStatus, Sink};

/// Draws progress on standard error and prints a line above it for each event that is worth one.
pub struct Progress {
    style: Style,
    bars: MultiProgress,
    state: Mutex<State>,
}

struct State {
    /// Nodes done of all nodes.
    run: ProgressBar,
    /// Nodes that run, in the order they started.
    running: Vec<String>,
    nodes: HashMap<String, ProgressBar>,
    cached: usize,
}

impl Progress {
    pub fn new(style: Style) -> Self {
        let bars = MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(10));
        let run = bars.add(ProgressBar::no_length());
        run.set_style(template("{spinner} {pos}/{len} nodes  {elapsed:>}  {msg}"));
        Self {
            style,
            bars,
            state: Mutex::new(State {
                run,
                running: Vec::new(),
                nodes: HashMap::new(),
                cached: 0,
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn node_progress(&self, node: &str, progress: &engine::Progress) {
        let mut state = self.state();
        let bar = match state.nodes.get(node) {
            Some(bar) => bar,
            None => {
                let bar = self
                    .bars
                    .insert_before(&state.run, ProgressBar::no_length());
                bar.set_style(bar_template(progress));
                bar.set_prefix(node.to_owned());
                // What was done before (a resumed node) is no part of the rate.
                bar.set_position(progress.done);
                bar.reset_eta();
                state.nodes.entry(node.to_owned()).or_insert(bar)
            }
        };
        if progress.total > 0 && bar.length() != Some(progress.total) {
            bar.set_length(progress.total);
        }
        bar.set_position(progress.done);
        bar.set_message(progress.note.clone());
    }
}

fn bar_template(progress: &engine::Progress) -> ProgressStyle {
    let unit = progress.unit.replace(['{', '}'], "");
    if progress.total == 0 {
        return template(&format!(
            "  {{prefix}} {{human_pos}} {unit}  {{per_sec}}  {{elapsed}}  {{wide_msg}}"
        ));
    }
    template(&format!(
        "  {{prefix}} {{bar:24.cyan/dim}} {{human_pos}}/{{human_len}} {unit}  {{per_sec}}  {{eta}} left  {{wide_msg}}"
    ))
}

fn template(text: &str) -> ProgressStyle {
    // The templates are fixed but for a unit without braces, so they are always valid.
    ProgressStyle::with_template(text)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("━━─")
}

impl State {
    fn tell_running(&self) {
        const MOST: usize = 3;
        let mut text = self
            .running
            .iter()
            .take(MOST)
            .map(String::as_str)
            .collect::<Vec<_>>()
            .join(", ");
        if self.running.len() > MOST {
            text.push_str(&format!(" and {} more", self.running.len() - MOST));
        }
        if self.cached > 0 {
            text = format!("{} cached  {text}", self.cached);
        }
        self.run.set_message(text);
    }
}

impl Sink for Progress {
    fn event(&self, event: &Event) {
        if let Some(text) = line(self.style, &event.kind) {
            // A terminal that went away must not end the run.
            let _ = self.bars.println(text);
        }
        match &event.kind {
            EventKind::RunStarted { nodes, .. } => {
                let state = self.state();
                state.run.set_length(*nodes as u64);
                state.run.enable_steady_tick(Duration::from_millis(200));
            }
            EventKind::NodeStarted { node, .. } => {
                let mut state = self.state();
                if !state.running.contains(node) {
                    state.running.push(node.clone());
                }
                state.tell_running();
            }
            EventKind::Progress { node, progress } => self.node_progress(node, progress),
            EventKind::NodeFinished { node, status, .. } => {
                let mut state = self.state();
                state.run.inc(1);
                state.cached += usize::from(*status == NodeStatus::Cached);
                if let Some(place) = state.running.iter().position(|running| running == node) {
                    state.running.remove(place);
                    state.tell_running();
                }
                if let Some(bar) = state.nodes.remove(node) {
                    bar.finish_and_clear();
                    self.bars.remove(&bar);
                }
            }
            EventKind::NodeReopened { .. } => {
                let mut state = self.state();
                state.run.dec(1);
                state.cached = state.cached.saturating_sub(1);
            }
            EventKind::RunFinished { .. } => {
                let state = self.state();
                state.nodes.values().for_each(ProgressBar::finish_and_clear);
                state.run.finish_and_clear();
            }
            EventKind::Fetching { .. } | EventKind::Metric { .. } | EventKind::Log { .. } => {}
        }
    }
}
