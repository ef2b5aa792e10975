//! Native operations. An [`Op`] declares its interface and, given a [`Context`], turns inputs into outputs.
//!
//! One file each, one trait, one list ([`Catalog::light`]). Ops of the language-model runtime are declared here for everybody
//! and get their `run` function from `Catalog::full`, which only the binary `flow-lm` calls.

mod bootstrap;
mod catalog;
mod checker;
mod command;
mod context;
mod embed;
mod error;
mod generate;
mod judge;
mod language_model;
#[cfg(feature = "torch")]
mod loaded;
mod parts;
mod score;
mod source;
mod sql;
mod table;
#[cfg(test)]
mod tests;
mod train;

pub use catalog::Catalog;
pub use context::{Context, Outputs};
pub use error::OpError;
pub use parts::{Item, Part, Parts, split};
pub use table::{Cell, ColumnType, Table};

use std::collections::BTreeMap;

use crate::config::{Columns, Interface};
use crate::graph::{Node, Resources};

/// What an op is, without running it. Everything here is cheap and pure but for [`Op::columns`], which may look at a
/// file's header.
pub trait Op: Send + Sync {
    fn name(&self) -> &'static str;

    /// Bumped when the same inputs would give other outputs; part of the fingerprint.
    fn version(&self) -> u32;

    fn interface(&self) -> Interface;

    /// Whether `node.seed` is used, which its params may decide; a node that is not seeded keeps its fingerprint when the
    /// pipeline's seed changes.
    fn seeded(&self, node: &Node) -> bool {
        let _ = node;
        false
    }

    /// Output port names, where they depend on the params; by default the interface's.
    fn outputs(&self, node: &Node) -> Vec<String> {
        let _ = node;
        self.interface().outputs.into_keys().collect()
    }

    fn resources(&self, node: &Node) -> Resources {
        let _ = node;
        Resources::default()
    }

    /// Whether this call needs the language-model runtime (a judge behind a URL does not).
    fn needs_language_model(&self, node: &Node) -> bool {
        let _ = node;
        false
    }

    /// Whether this call is worth a machine of its own where there is a cluster.
    fn wants_machine(&self, node: &Node) -> bool {
        self.needs_language_model(node)
    }

    /// Into how many parts the work may be cut, each done by a process of its own ([`Context::parts`]); 0 where it is done
    /// as a whole.
    fn parts(&self, node: &Node) -> u32 {
        let _ = node;
        0
    }

    /// Names of environment variables whose values this call reads.
    fn environment(&self, node: &Node) -> Vec<String> {
        let _ = node;
        Vec::new()
    }

    /// Checks params beyond their types, and works out the columns of the outputs from those of the inputs
    /// (`None`: not known before the run). Errors are shown with the place of the param they name.
    fn columns(
        &self,
        node: &Node,
        inputs: &BTreeMap<String, Option<Columns>>,
    ) -> Result<BTreeMap<String, Option<Columns>>, Vec<Problem>> {
        let _ = (node, inputs);
        let outputs = self.interface().outputs;
        Ok(outputs
            .into_iter()
            .map(|(name, port)| (name, (!port.columns.is_empty()).then_some(port.columns)))
            .collect())
    }
}

/// Something wrong with a node, found before work starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The dotted param it is about (`query`, `lora.r`), or an input as `inputs.rows`; empty for the node itself.
    pub at: String,
    pub message: String,
    pub help: Option<String>,
}

/// Runs one op call.
pub type RunFn = fn(&mut Context) -> Result<Outputs, OpError>;
