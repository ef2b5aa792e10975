//! From a checked spec to a graph.

/// Expands stages into nodes, wires ports, orders the nodes or names the cycle.
#[allow(clippy::todo)]
pub fn compile() {
    todo!()
}
