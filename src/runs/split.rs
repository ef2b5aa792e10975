//! One run of the engine told as several: each variant of a matrix hears of its own nodes, by the names they have without a matrix,
//! and of its own beginning and end.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::engine::{Event, EventKind, NodeStatus, RunState, Sink};
use crate::graph::base_name;

/// A listener that passes events on to those they concern.
pub struct Split<'a> {
    parts: Vec<Part<'a>>,
    /// By node as the engine names it.
    owners: HashMap<&'a str, Vec<usize>>,
}

struct Part<'a> {
    id: &'a str,
    nodes: usize,
    sink: &'a dyn Sink,
    state: Mutex<State>,
}

struct State {
    started: Instant,
    left: usize,
    has_failed: bool,
    has_skipped: bool,
}

impl<'a> Split<'a> {
    /// For each variant the id of its run, its nodes as the engine names them, and who listens.
    pub fn new<N>(variants: impl IntoIterator<Item = (&'a str, N, &'a dyn Sink)>) -> Self
    where
        N: Iterator<Item = &'a str>,
    {
        let (mut parts, mut owners) = (Vec::new(), HashMap::<&str, Vec<usize>>::new());
        for (id, names, sink) in variants {
            let mut nodes = 0;
            for name in names {
                owners.entry(name).or_default().push(parts.len());
                nodes += 1;
            }
            let state = State {
                started: Instant::now(),
                left: nodes,
                has_failed: false,
                has_skipped: false,
            };
            parts.push(Part {
                id,
                nodes,
                sink,
                state: Mutex::new(state),
            });
        }
        Self { parts, owners }
    }

    fn pass_on(&self, name: &str, event: &Event) {
        let owners = self.owners.get(name).map_or(&[][..], Vec::as_slice);
        let renamed = renamed(event);
        for &owner in owners {
            let part = &self.parts[owner];
            part.sink.event(&renamed);
            match &event.kind {
                EventKind::NodeFinished { status, .. } => part.node_ended(*status),
                EventKind::NodeReopened { .. } => {
                    let mut state = part.state.lock().unwrap_or_else(PoisonError::into_inner);
                    state.left += 1;
                }
                _ => {}
            }
        }
    }
}

impl Part<'_> {
    fn node_ended(&self, status: NodeStatus) {
        let end = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.left = state.left.saturating_sub(1);
            state.has_failed |= status == NodeStatus::Failed;
            state.has_skipped |= status == NodeStatus::Skipped;
            (state.left == 0).then(|| state.end())
        };
        if let Some(end) = end {
            self.sink.event(&Event::now(end));
        }
    }
}

impl State {
    fn end(&self) -> EventKind {
        let state = match (self.has_failed, self.has_skipped) {
            (true, _) => RunState::Failed,
            (false, true) => RunState::Interrupted,
            (false, false) => RunState::Finished,
        };
        EventKind::RunFinished {
            state,
            seconds: self.started.elapsed().as_secs_f64(),
        }
    }
}

impl Sink for Split<'_> {
    fn event(&self, event: &Event) {
        match &event.kind {
            EventKind::RunStarted { pipeline, .. } => {
                for part in &self.parts {
                    part.sink.event(&Event {
                        time: event.time.clone(),
                        kind: EventKind::RunStarted {
                            id: part.id.to_owned(),
                            pipeline: pipeline.clone(),
                            nodes: part.nodes,
                        },
                    });
                    if part.nodes == 0 {
                        let state = part.state.lock().unwrap_or_else(PoisonError::into_inner);
                        part.sink.event(&Event::now(state.end()));
                    }
                }
            }
            EventKind::NodeStarted { node, .. }
            | EventKind::Progress { node, .. }
            | EventKind::Metric { node, .. }
            | EventKind::Log {
                node: Some(node), ..
            }
            | EventKind::NodeReopened { node }
            | EventKind::NodeFinished { node, .. } => self.pass_on(node, event),
            EventKind::Log { node: None, .. } | EventKind::Fetching { .. } => {
                self.parts.iter().for_each(|part| part.sink.event(event));
            }
            // Each part has an end of its own.
            EventKind::RunFinished { .. } => {}
        }
    }
}

/// The event with its node as it is called where there is no matrix.
fn renamed(event: &Event) -> Event {
    let mut event = event.clone();
    match &mut event.kind {
        EventKind::NodeStarted { node, .. }
        | EventKind::Progress { node, .. }
        | EventKind::Metric { node, .. }
        | EventKind::Log {
            node: Some(node), ..
        }
        | EventKind::NodeReopened { node }
        | EventKind::NodeFinished { node, .. } => node.truncate(base_name(node).len()),
        _ => {}
    }
    event
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[derive(Default)]
    struct Heard(Mutex<Vec<String>>);

    impl Sink for Heard {
        fn event(&self, event: &Event) {
            let line = match &event.kind {
                EventKind::RunStarted { id, nodes, .. } => format!("{id} has {nodes} nodes"),
                EventKind::NodeFinished { node, status, .. } => format!("{node} {status:?}"),
                EventKind::RunFinished { state, .. } => format!("{state:?}"),
                other => format!("{other:?}"),
            };
            self.0.lock().unwrap().push(line);
        }
    }

    fn finished(node: &str, status: NodeStatus) -> Event {
        Event::now(EventKind::NodeFinished {
            node: node.to_owned(),
            op: "sql".to_owned(),
            status,
            seconds: 0.0,
            fingerprint: None,
            outputs: BTreeMap::new(),
            metrics: BTreeMap::new(),
            error: None,
        })
    }

    #[test]
    fn each_variant_hears_of_its_own_nodes_and_end() {
        let (first, second) = (Heard::default(), Heard::default());
        let split = Split::new([
            ("g-1", ["rows", "fit@r=8"].into_iter(), &first as &dyn Sink),
            (
                "g-2",
                ["rows", "fit@r=16"].into_iter(),
                &second as &dyn Sink,
            ),
        ]);
        split.event(&Event::now(EventKind::RunStarted {
            id: "g".to_owned(),
            pipeline: "p".to_owned(),
            nodes: 3,
        }));
        split.event(&finished("rows", NodeStatus::Ran));
        split.event(&finished("fit@r=16", NodeStatus::Failed));
        split.event(&finished("fit@r=8", NodeStatus::Ran));
        let heard = |who: Heard| who.0.into_inner().unwrap();
        assert_eq!(
            heard(first),
            ["g-1 has 2 nodes", "rows Ran", "fit Ran", "Finished"]
        );
        assert_eq!(
            heard(second),
            ["g-2 has 2 nodes", "rows Ran", "fit Failed", "Failed"]
        );
    }
}
