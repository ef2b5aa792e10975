//! What is known while a graph is being compiled: nodes not yet wired, and the stages they belong to.

use std::rc::Rc;

use crate::config::{Call, Entry, InputRef, Interface, Port, Span, StageSpec};
use crate::graph::Node;

/// A node without its links, with the places its parts were written at.
pub(super) struct Draft {
    pub node: Node,
    pub interface: Rc<Interface>,
    /// Where the call is named.
    pub span: Span,
    /// The checked params with their places.
    pub with: Vec<Entry>,
    pub inputs: Vec<InputRef>,
    /// Position of its stage in [`Stage`]s.
    pub stage: usize,
    /// False where its params are wrong: then nothing more is asked of its op.
    pub sound: bool,
}

/// One stage of the pipeline.
pub(super) struct Stage<'a> {
    pub call: &'a Call,
    /// `None` for a bare op.
    pub definition: Option<Rc<StageSpec>>,
    /// Step name to draft; `None` where the step's op is unknown.
    pub steps: Vec<(String, Option<usize>)>,
    /// Inputs declared by the stage and wired by the call.
    pub bound: Vec<Bound>,
    /// Its declared outputs, once they are wired.
    pub exports: Vec<(String, From)>,
    /// Nothing is known of it (its op or stage was not found): references to it are not followed.
    pub broken: bool,
}

/// An input of a stage as the pipeline wires it.
#[derive(Clone)]
pub(super) struct Bound {
    pub input: InputRef,
    pub port: Port,
    pub from: Option<From>,
    /// Whether its columns were looked at, and what came of it.
    pub columns_fit: Option<bool>,
}

/// An output of a draft.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct From {
    pub draft: usize,
    pub output: String,
}

/// A wired input of a draft.
pub(super) struct Wire {
    pub port: String,
    pub from: From,
    pub span: Span,
    /// The input of the stage it comes through: position in [`Stage::bound`].
    pub bound: Option<usize>,
}
