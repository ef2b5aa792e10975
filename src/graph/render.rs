//! The graph as a drawing: Mermaid or Graphviz text, one box for each stage with several steps.

use std::fmt::Write as _;

use petgraph::visit::EdgeRef as _;

use super::Graph;

impl Graph {
    /// A Mermaid flowchart.
    pub fn to_mermaid(&self) -> String {
        let mut text = String::from("flowchart LR\n");
        for (stage, nodes) in self.by_stage() {
            let boxed = nodes.len() > 1;
            if boxed {
                let _ = writeln!(text, "  subgraph s_{}[\"{}\"]", id(stage), stage);
            }
            for index in nodes {
                let node = &self.dag[index];
                let label = node
                    .name
                    .strip_prefix(stage)
                    .and_then(|rest| rest.strip_prefix('.'))
                    .unwrap_or(&node.name);
                let indent = if boxed { "    " } else { "  " };
                let _ = writeln!(
                    text,
                    "{indent}n{}[\"{label}<br/><small>{}</small>\"]",
                    index.index(),
                    node.op
                );
            }
            if boxed {
                text.push_str("  end\n");
            }
        }
        for edge in self.dag.edge_references() {
            let _ = writeln!(
                text,
                "  n{} -->|{}| n{}",
                edge.source().index(),
                edge.weight().input,
                edge.target().index()
            );
        }
        text
    }

    /// A Graphviz digraph.
    pub fn to_dot(&self) -> String {
        let mut text = format!(
            "digraph \"{}\" {{\n  rankdir=LR;\n  node [shape=box, style=rounded, fontname=\"sans-serif\"];\n",
            quoted(&self.name)
        );
        for (stage, nodes) in self.by_stage() {
            let boxed = nodes.len() > 1;
            if boxed {
                let _ = writeln!(
                    text,
                    "  subgraph \"cluster_{}\" {{\n    label=\"{}\";",
                    quoted(stage),
                    quoted(stage)
                );
            }
            for index in nodes {
                let node = &self.dag[index];
                let indent = if boxed { "    " } else { "  " };
                let _ = writeln!(
                    text,
                    "{indent}\"{}\" [label=\"{}\\n{}\"];",
                    quoted(&node.name),
                    quoted(&node.name),
                    node.op
                );
            }
            if boxed {
                text.push_str("  }\n");
            }
        }
        for edge in self.dag.edge_references() {
            let (from, to) = (&self.dag[edge.source()].name, &self.dag[edge.target()].name);
            let _ = writeln!(
                text,
                "  \"{}\" -> \"{}\" [label=\"{}\"];",
                quoted(from),
                quoted(to),
                quoted(&edge.weight().input)
            );
        }
        text.push_str("}\n");
        text
    }

    /// Stages in the order of declaration with their nodes.
    fn by_stage(&self) -> Vec<(&str, Vec<petgraph::graph::NodeIndex>)> {
        let mut stages: Vec<(&str, Vec<_>)> = Vec::new();
        for index in self.dag.node_indices() {
            let stage = self.dag[index].stage.as_str();
            match stages.last_mut() {
                // The nodes of a stage are made one after the other.
                Some((last, nodes)) if *last == stage => nodes.push(index),
                _ => stages.push((stage, vec![index])),
            }
        }
        stages
    }
}

fn quoted(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"")
}

fn id(name: &str) -> String {
    name.chars()
        .map(|character| {
            if character.is_ascii_alphanumeric() {
                character
            } else {
                '_'
            }
        })
        .collect()
}
