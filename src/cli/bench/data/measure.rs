//! The measured process: runs a pipeline node after node and notes what each took.

use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::cache::{Cache, Holder, RunLock};
use crate::cli::bench::process;
use crate::cli::error::CliError;
use crate::cli::folders::environment;
use crate::cli::resolve::Outside;
use crate::config::{Request, load};
use crate::engine::{
    self, CancelToken, Event, EventKind, NodeStatus, RunOptions, RunState, Selection, Sink,
};
use crate::graph::compile;
use crate::ops::Catalog;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Measured {
    /// Before the first node: hashing the data, looking at its columns.
    pub plan_seconds: f64,
    /// In the order in which they ran.
    pub nodes: Vec<NodeCost>,
    /// All of it, from reading the pipeline to a closed cache.
    pub seconds: f64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NodeCost {
    pub node: String,
    /// Rows of its output.
    pub rows: u64,
    pub seconds: f64,
    /// Of the process while the node ran, in bytes.
    pub peak: Option<u64>,
}

/// Runs `pipeline` with a cache beside it.
pub fn run(pipeline: &Path, catalog: &Catalog) -> Result<Measured, CliError> {
    let start = Instant::now();
    let request = Request {
        path: pipeline.to_owned(),
        ..Request::default()
    };
    let spec = load(&request, &environment)?;
    let graph = compile(&spec, catalog)?;
    let folder = spec.root.join("cache");
    let lock = RunLock::acquire(&folder, &Holder::new("bench"), |_| false)?;
    let cache = Cache::open(&folder, lock)?;
    let watch = Watch::default();
    let outside = Outside {
        root: &spec.root,
        home: &spec.root,
        offline: true,
        cache: &cache,
        sink: &watch,
    };
    let plan = engine::plan(&graph, &cache, &Selection::default(), &outside, &watch)?;
    let plan_seconds = start.elapsed().as_secs_f64();
    let options = RunOptions {
        id: "bench".to_owned(),
        jobs: 1,
        gpus: Vec::new(),
        offline: true,
        home: spec.root.clone(),
        cancel: CancelToken::default(),
        executor: None,
    };
    let outcome = engine::run(&graph, catalog, &cache, &plan, &options, &watch);
    if outcome.state != RunState::Finished {
        let (message, help) = outcome.headline.map_or_else(
            || ("the run was stopped".to_owned(), None),
            |failure| (failure.message, failure.help),
        );
        return Err(CliError::failed(message, help));
    }
    drop(cache);
    Ok(Measured {
        plan_seconds,
        nodes: watch
            .0
            .into_inner()
            .unwrap_or_else(std::sync::PoisonError::into_inner),
        seconds: start.elapsed().as_secs_f64(),
    })
}

/// Notes the costs of nodes that run one at a time.
#[derive(Default)]
struct Watch(Mutex<Vec<NodeCost>>);

impl Sink for Watch {
    fn event(&self, event: &Event) {
        match &event.kind {
            EventKind::NodeStarted { .. } => process::forget_peak(),
            EventKind::NodeFinished {
                node,
                status: NodeStatus::Ran,
                seconds,
                outputs,
                ..
            } => {
                let rows = outputs.values().filter_map(|artifact| artifact.rows).sum();
                self.0
                    .lock()
                    .unwrap_or_else(std::sync::PoisonError::into_inner)
                    .push(NodeCost {
                        node: node.clone(),
                        rows,
                        seconds: *seconds,
                        peak: process::peak(),
                    });
            }
            _ => {}
        }
    }
}
