//! Tracking: a run's numbers, console and files at a server that speaks W&B's protocol.
//!
//! [`Tracker`] listens to the engine's events and writes a journal; a thread sends what is in it. What is in the journal is
//! never lost and arrives once, whatever the server does, and whenever this process dies; `flow sync` sends what is left.
//! Settings are handed in by the command line; nothing here reads the environment or prints.
//!
//! Reading order: `tracker`, `history` (events to rows), `journal`, `sender` (what is sent next), `live` (when).

mod client;
pub mod export;
mod failure;
mod graphql;
mod head;
mod history;
mod journal;
mod lines;
mod live;
mod netrc;
mod number;
mod row;
mod sender;
mod sent;
mod settings;
mod stream;
mod summary;
mod sync;
mod system;
mod tracker;
mod upload;

pub use failure::Failure;
pub use head::Head;
pub use journal::{Lock, folder_of};
pub use live::{Ending, Pace};
pub use sent::Sent;
pub use settings::{ApiKey, Mode, Settings, SettingsError, Sources, base_url};
pub use sync::{Progress, journals, progress, sync};
pub use tracker::{NewTracking, Report, Tracker};
