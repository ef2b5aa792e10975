//! What people see while something runs, and the tables commands print.
//!
//! Listens to engine events and writes to the terminal; decides nothing. Used by the command line; pages borrow its
//! formats of numbers.

mod describe;
mod format;
mod lines;
mod progress;
mod sparkline;
mod style;
mod table;

pub use describe::{line, number};
pub use format::{bytes, count, plural, seconds};
pub use lines::Lines;
pub use progress::Progress;
pub use sparkline::{plot, sparkline};
pub use style::Style;
pub use table::{table, terminal_width};
