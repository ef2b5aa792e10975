//! Charts as SVG text, one file for each kind. Colours are names that the page gives values to, for light and dark.
//!
//! Each is drawn for a card as wide as a phone and grows with it; all text in them is escaped.

mod bars;
mod graph;
mod histogram;
mod intervals;
mod lines;
mod scale;
mod svg;

pub use bars::{Bar, bars};
pub use graph::{NodeBox, graph};
pub use histogram::{Bin, histogram};
pub use intervals::{Estimate, intervals};
pub use lines::{Series, lines};

/// Width of a chart in units that are pixels on a card of 400.
pub const WIDTH: f64 = 400.0;
