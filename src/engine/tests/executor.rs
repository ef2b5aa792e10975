//! Nodes that an executor runs, and executors with mistakes.

use std::sync::Arc;

use super::{Project, Ran, diamond};
use crate::engine::{
    Call, Executor, NodeStatus, RunOptions, RunState, Selection, execute::run_here,
};
use crate::graph::Node;
use crate::ops::{Context, Op, OpError, Outputs};

/// Runs all but `top`, and panics at `panics`.
#[derive(Debug)]
struct Faulty {
    panics: &'static str,
}

impl Faulty {
    fn meet(&self, node: &Node) {
        assert!(node.name != self.panics, "no {} today", node.name);
    }
}

impl Executor for Faulty {
    fn takes(&self, _: &dyn Op, node: &Node) -> bool {
        node.name != "top"
    }

    fn most(&self) -> u32 {
        2
    }

    fn run(&self, call: &Call<'_>, context: &mut Context<'_>) -> Result<Outputs, OpError> {
        self.meet(context.node);
        run_here(context, call.run)
    }

    fn prepare(&self, _: &dyn Op, context: &mut Context<'_>) -> Result<Option<Outputs>, OpError> {
        self.meet(context.node);
        Ok(None)
    }
}

fn run(project: &Project, panics: &'static str) -> Ran {
    let options = RunOptions {
        executor: Some(Arc::new(Faulty { panics })),
        ..project.options()
    };
    project.run_with(&Selection::default(), &options).unwrap()
}

#[test]
fn an_executor_that_panics_fails_its_node_and_no_other() {
    let project = diamond();
    let ran = run(&project, "left");
    assert_eq!(ran.outcome.state, RunState::Failed);
    assert_eq!(
        (
            ran.ran(),
            ran.with(NodeStatus::Failed),
            ran.with(NodeStatus::Skipped)
        ),
        (vec!["right", "top"], vec!["left"], vec!["end"])
    );
    assert_eq!(ran.headline(), "the executor panicked: no left today");
    let help = ran.outcome.headline.unwrap().help.unwrap();
    assert!(help.contains("please report it"), "{help}");
    let again = run(&project, "none");
    assert_eq!(again.outcome.state, RunState::Finished);
    assert_eq!(again.ran(), ["end", "left"]);
}

#[test]
fn a_panic_beside_the_op_fails_the_node_too() {
    let ran = run(&diamond(), "top");
    assert_eq!(ran.outcome.state, RunState::Failed);
    assert_eq!(ran.with(NodeStatus::Failed), ["top"]);
    assert_eq!(ran.with(NodeStatus::Skipped), ["end", "left", "right"]);
    assert_eq!(ran.headline(), "the engine panicked: no top today");
}
