//! A graph of nodes from top to bottom: each lies below all it reads (Sugiyama's layers, ordered by the mean place above).

use super::svg::{Anchor, Svg};

/// A node as it is drawn.
pub struct NodeBox {
    pub name: String,
    /// The second line: what it is and how long it took.
    pub note: String,
    /// `ran`, `cached`, `failed`, `skipped` or `unfinished`.
    pub state: &'static str,
    /// Positions of the nodes it reads; all come before it.
    pub reads: Vec<usize>,
}

const BOX: (f64, f64) = (186.0, 38.0);
const GAP: (f64, f64) = (16.0, 26.0);
/// Room at both sides for links that go around a node.
const SIDE: f64 = 28.0;

/// Draws nodes that are in topological order.
pub fn graph(title: &str, boxes: &[NodeBox]) -> String {
    let layers = layers(boxes);
    let widest = layers.iter().map(Vec::len).max().unwrap_or_default() as f64;
    let width = widest * (BOX.0 + GAP.0) - GAP.0 + 2.0 * SIDE;
    let height = layers.len() as f64 * (BOX.1 + GAP.1) - GAP.1 + 4.0;
    let mut places = vec![(0.0, 0.0); boxes.len()];
    let mut depths = vec![0; boxes.len()];
    for (depth, layer) in layers.iter().enumerate() {
        for (index, node) in layer.iter().enumerate() {
            // From the left edge, which is what a phone shows of a wide graph.
            let x = SIDE + index as f64 * (BOX.0 + GAP.0);
            places[*node] = (x, 2.0 + depth as f64 * (BOX.1 + GAP.1));
            depths[*node] = depth;
        }
    }
    let mut svg = Svg::new(width, height, title);
    for (node, drawn) in boxes.iter().enumerate() {
        for above in &drawn.reads {
            let link = link(
                places[*above],
                places[node],
                depths[node] - depths[*above] > 1,
                node % 2 == 0,
            );
            svg.path("edge", &link);
        }
    }
    for (drawn, (x, y)) in boxes.iter().zip(&places) {
        let tip = format!("{}: {}, {}", drawn.name, drawn.note, drawn.state);
        svg.rect(&format!("node {}", drawn.state), (*x, *y), BOX, &tip);
        let middle = x + BOX.0 / 2.0;
        svg.cut_text("title", (middle, y + 16.0), Anchor::Middle, &drawn.name, 24);
        svg.cut_text("note", (middle, y + 31.0), Anchor::Middle, &drawn.note, 28);
    }
    svg.finish("graph")
}

/// From the lower edge of a box to the upper edge of another; a long link between boxes in one column goes around those
/// between them, on the left or the right.
fn link(above: (f64, f64), below: (f64, f64), long: bool, left: bool) -> String {
    let (x1, y1) = (above.0 + BOX.0 / 2.0, above.1 + BOX.1);
    let (x2, y2) = (below.0 + BOX.0 / 2.0, below.1);
    let around = if long && (x1 - x2).abs() < BOX.0 / 2.0 {
        // A Bézier curve goes three quarters of the way to its control points.
        let out = (BOX.0 / 2.0 + SIDE / 2.0) / 0.75;
        if left { -out } else { out }
    } else {
        0.0
    };
    let bend = ((y2 - y1) / 2.0).min(40.0);
    format!(
        "M{x1:.0} {y1:.0}C{:.0} {:.0} {:.0} {:.0} {x2:.0} {y2:.0}",
        x1 + around,
        y1 + bend,
        x2 + around,
        y2 - bend
    )
}

/// The depth of a node is the longest way to it; within a layer nodes stand near what they read.
fn layers(boxes: &[NodeBox]) -> Vec<Vec<usize>> {
    let mut depths: Vec<usize> = Vec::with_capacity(boxes.len());
    let mut layers: Vec<Vec<usize>> = Vec::new();
    for (node, drawn) in boxes.iter().enumerate() {
        let below = drawn.reads.iter().map(|above| depths[*above] + 1);
        let depth = below.max().unwrap_or_default();
        depths.push(depth);
        if layers.len() <= depth {
            layers.resize_with(depth + 1, Vec::new);
        }
        layers[depth].push(node);
    }
    let mut place = vec![0.0; boxes.len()];
    for layer in &mut layers {
        let mean = |node: &usize| {
            let reads = &boxes[*node].reads;
            let total: f64 = reads.iter().map(|above| place[*above]).sum();
            total / reads.len().max(1) as f64
        };
        layer.sort_by(|a, b| mean(a).total_cmp(&mean(b)));
        for (index, node) in layer.iter().enumerate() {
            place[*node] = index as f64;
        }
    }
    layers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_lie_below_what_they_read_and_near_it() {
        let node = |reads: &[usize]| NodeBox {
            name: "n".to_owned(),
            note: String::new(),
            state: "ran",
            reads: reads.to_vec(),
        };
        // Two chains whose ends are declared the other way round, joined at the bottom.
        let boxes = [
            node(&[]),
            node(&[]),
            node(&[1]),
            node(&[0]),
            node(&[2, 3, 0]),
        ];
        assert_eq!(layers(&boxes), [vec![0, 1], vec![3, 2], vec![4]]);
        let drawn = graph("t", &boxes);
        assert_eq!(drawn.matches("class=\"edge\"").count(), 5);
        assert_eq!(drawn.matches("class=\"node ran\"").count(), 5);
    }
}
