//! Where nodes run whose op asks for a machine of its own. The engine knows this interface and no cluster.

use super::RunOptions;
use crate::graph::{Manifest, Node};
use crate::ops::{Context, Op, OpError, Outputs, RunFn};

/// Runs nodes in other processes. Everything else of a node (its looking up, the checks, the commit) stays with the engine.
pub trait Executor: std::fmt::Debug + Send + Sync {
    /// Whether it runs this node; others run in this process.
    fn takes(&self, op: &dyn Op, node: &Node) -> bool;

    /// How many nodes it runs at a time. They occupy no slots here.
    fn most(&self) -> u32;

    /// Runs one call to its end, as the op's own function would: tells the context's sink what happens, stops when it is
    /// cancelled, and has all outputs in the context's cache when it returns.
    fn run(&self, call: &Call<'_>, context: &mut Context<'_>) -> Result<Outputs, OpError>;

    /// Asked before a node runs in this process, which has slots for it: fails where another process may be working on the
    /// same, and may name others who do the work in parts, or have one do it all and give what it gave.
    fn prepare(&self, op: &dyn Op, context: &mut Context<'_>) -> Result<Option<Outputs>, OpError> {
        let _ = (op, context);
        Ok(None)
    }
}

/// One call of an op, beside what its [`Context`] says.
pub struct Call<'a> {
    pub op: &'a dyn Op,
    pub manifest: &'a Manifest,
    /// What runs the op in this process, where this binary can.
    pub run: Option<RunFn>,
}

impl RunOptions {
    pub(super) fn is_elsewhere(&self, op: &dyn Op, node: &Node) -> bool {
        self.executor
            .as_ref()
            .is_some_and(|executor| executor.takes(op, node))
    }
}
