//! What is to be sent next. Knows only the journal, so that a run that is on and `flow sync` send in the same way.
//!
//! One request at a time, in order; none before the one ahead of it was acknowledged, and that one again with the same
//! bytes at the same offset until it is. So a server that honours offsets has every line exactly once.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use reqwest::Url;

use super::client::Client;
use super::failure::Failure;
use super::graphql;
use super::head::Head;
use super::journal::{CONSOLE, HISTORY, SYSTEM};
use super::lines::{LineReader, Position};
use super::row::Row;
use super::sent::Sent;
use super::settings::ApiKey;
use super::stream::{self, Body};
use super::summary::Summary;
use super::upload;
use crate::digest::Digest;

/// Bytes of lines in one request; servers take 10 MiB.
const MOST: usize = 8 * 1024 * 1024;
/// How long a server may hear nothing.
const HEARTBEAT: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Something was sent, and there is more.
    More,
    /// All there is for now is sent.
    Idle,
    /// The server knows that the run has ended.
    Done,
}

pub struct Sender {
    folder: PathBuf,
    client: Client,
    sent: Sent,
    connected: bool,
    readers: Readers,
    /// Where the readers were at what was acknowledged last.
    acknowledged: [Position; 3],
    summary: Summary,
    pending: Option<Pending>,
    /// Files the server has and has not been told of.
    uploaded: Vec<(String, Digest)>,
    most: usize,
    last: Instant,
}

struct Readers {
    history: LineReader,
    system: LineReader,
    console: LineReader,
}

/// A request that has not been acknowledged.
struct Pending {
    body: Vec<u8>,
    lines: usize,
    after: [Position; 3],
    completes: Option<u32>,
}

impl Sender {
    pub fn open(folder: &Path, base_url: &Url, key: &ApiKey) -> Result<Self, Failure> {
        let open = |name: &str| LineReader::open(&folder.join(name));
        Ok(Self {
            folder: folder.to_owned(),
            client: Client::new(base_url.clone(), key.clone())?,
            sent: Sent::read(folder, base_url)?,
            connected: false,
            readers: Readers {
                history: open(HISTORY)?,
                system: open(SYSTEM)?,
                console: open(CONSOLE)?,
            },
            acknowledged: Default::default(),
            summary: Summary::default(),
            pending: None,
            uploaded: Vec::new(),
            most: MOST,
            last: Instant::now(),
        })
    }

    pub fn sent(&self) -> &Sent {
        &self.sent
    }

    /// Says in the journal that the server refused, or takes it back.
    pub fn set_refused(&mut self, why: Option<String>) -> Result<(), Failure> {
        if why.is_none() {
            self.sent.left_out.clear();
        }
        self.sent.refused = why;
        Ok(self.sent.write(&self.folder)?)
    }

    /// Sends one request of lines (or more of other kinds, where they come first).
    pub fn step(&mut self) -> Result<Step, Failure> {
        // Read before the lines: what it says of the end is said after the last line.
        let head = Head::read(&self.folder)?;
        self.connect(&head)?;
        if self.pending.is_none() {
            self.pending = self.lines()?;
        }
        if self.pending.is_some() {
            self.post(&head)?;
            return Ok(Step::More);
        }
        if upload::missing(&self.folder, &self.sent, &self.uploaded)?.is_empty() {
            let Some(exit_code) = head.exit_code else {
                return self.beat(&head);
            };
            if self.sent.completed != Some(head.attempts) {
                self.pending = Some(self.end(exit_code, head.attempts)?);
                self.post(&head)?;
            }
            return Ok(Step::Done);
        }
        let done = upload::upload(
            &self.client,
            &head,
            &mut self.sent,
            &self.folder,
            &self.uploaded,
        );
        self.uploaded.extend(done?);
        self.sent.write(&self.folder)?;
        Ok(Step::More)
    }

    /// Makes the run known, and again whenever its config has changed.
    fn connect(&mut self, head: &Head) -> Result<(), Failure> {
        let config = Digest::of(head.config_document().to_string());
        if self.connected && self.sent.config == Some(config) {
            return Ok(());
        }
        // Whoever sent before may have been killed before it heard the answer.
        if !self.connected && self.sent.entity.is_some() {
            self.resume(graphql::status(&self.client, head, &self.sent)?);
        }
        let bucket = graphql::upsert(&self.client, head, &self.sent)?;
        self.sent.storage_id = bucket.storage_id;
        self.sent.entity = Some(bucket.entity);
        self.sent.project = Some(bucket.project);
        self.sent.config = Some(config);
        if !self.connected {
            self.place()?;
            self.connected = true;
        }
        self.last = Instant::now();
        Ok(self.sent.write(&self.folder)?)
    }

    /// Takes the server's counts where they are ahead. A lower count means nothing: the server acknowledged, and may count late.
    fn resume(&mut self, status: Option<graphql::Status>) {
        let sent = &mut self.sent;
        match status {
            Some(status) => {
                sent.storage_id = status.id.or(sent.storage_id.take());
                for (own, theirs) in [
                    (&mut sent.history, status.history_line_count),
                    (&mut sent.system, status.events_line_count),
                    (&mut sent.console, status.log_line_count),
                ] {
                    *own = (*own).max(theirs.unwrap_or(0));
                }
            }
            None => {
                // The run was deleted there.
                *sent = Sent {
                    base_url: std::mem::take(&mut sent.base_url),
                    ..Sent::default()
                };
            }
        }
    }

    /// Goes to the first line that is not acknowledged; never past the end, whatever the server counts.
    fn place(&mut self) -> Result<(), Failure> {
        let (summary, readers) = (&mut self.summary, &mut self.readers);
        while readers.history.position().line < self.sent.history {
            let Some(line) = readers.history.next()? else {
                break;
            };
            summary.add(&serde_json::from_str(&line)?);
        }
        for (reader, lines) in [
            (&mut readers.system, self.sent.system),
            (&mut readers.console, self.sent.console),
        ] {
            while reader.position().line < lines && reader.next()?.is_some() {}
        }
        self.acknowledged = readers.positions();
        let sent = &mut self.sent;
        [sent.history, sent.system, sent.console] = self.acknowledged.map(|position| position.line);
        Ok(())
    }

    /// The lines that come next, as many as fit; `None` where there are none, and no uploaded file to tell of.
    fn lines(&mut self) -> Result<Option<Pending>, Failure> {
        let mut body = Body::default();
        let mut room = self.most;
        let [history, system, console] = self.readers.positions().map(|position| position.line);
        let rows = take(&mut self.readers.history, &mut room, self.most)?;
        let mut lines = Vec::with_capacity(rows.len());
        for row in &rows {
            let row: Row = serde_json::from_str(row)?;
            lines.push(row.line());
            self.summary.add(&row);
        }
        if !lines.is_empty() {
            body.put(stream::SUMMARY, 0, vec![self.summary.line()]);
        }
        body.put(stream::HISTORY, history, lines);
        let lines = take(&mut self.readers.system, &mut room, self.most)?;
        body.put(stream::EVENTS, system, lines);
        let lines = take(&mut self.readers.console, &mut room, self.most)?;
        body.put(stream::CONSOLE, console, lines);
        body.uploaded = self.uploaded.iter().map(|(name, _)| name.clone()).collect();
        if body == Body::default() {
            return Ok(None);
        }
        self.readers.sync()?;
        Ok(Some(self.pending(&body, None)?))
    }

    fn end(&self, exit_code: i32, attempt: u32) -> Result<Pending, Failure> {
        let mut body = Body {
            complete: Some(true),
            exitcode: Some(exit_code),
            ..Body::default()
        };
        body.put(stream::SUMMARY, 0, vec![self.summary.line()]);
        self.pending(&body, Some(attempt))
    }

    fn pending(&self, body: &Body, completes: Option<u32>) -> Result<Pending, Failure> {
        let count = |file| body.files.get(file).map_or(0, |chunk| chunk.content.len());
        Ok(Pending {
            body: serde_json::to_vec(body)?,
            lines: count(stream::HISTORY) + count(stream::EVENTS) + count(stream::CONSOLE),
            after: self.readers.positions(),
            completes,
        })
    }

    /// Sends what is pending. Whatever fails, it stays pending, unless it was too large.
    fn post(&mut self, head: &Head) -> Result<(), Failure> {
        let Some(pending) = &self.pending else {
            return Ok(());
        };
        match self.send(head, pending.body.clone()) {
            Ok(()) => {}
            Err(Failure::TooLarge(_)) if pending.lines > 1 => {
                self.most = (self.most.min(pending.body.len()) / 2).max(1);
                self.pending = None;
                self.readers.seek(self.acknowledged)?;
                return Ok(());
            }
            Err(Failure::TooLarge(message)) => return Err(Failure::Refused(message)),
            Err(failure) => return Err(failure),
        }
        self.last = Instant::now();
        let (after, completes) = (pending.after, pending.completes);
        self.pending = None;
        self.acknowledged = after;
        let sent = &mut self.sent;
        [sent.history, sent.system, sent.console] = after.map(|position| position.line);
        sent.files.extend(self.uploaded.drain(..));
        sent.completed = completes.or(sent.completed);
        Ok(sent.write(&self.folder)?)
    }

    fn beat(&mut self, head: &Head) -> Result<Step, Failure> {
        if self.last.elapsed() >= HEARTBEAT {
            self.send(head, b"{}".to_vec())?;
            self.last = Instant::now();
        }
        Ok(Step::Idle)
    }

    fn send(&self, head: &Head, body: Vec<u8>) -> Result<(), Failure> {
        let (Some(entity), Some(project)) = (&self.sent.entity, &self.sent.project) else {
            return Err(Failure::Refused("the run has no place yet".to_owned()));
        };
        self.client.stream(entity, project, &head.id, body)
    }
}

impl Readers {
    fn positions(&self) -> [Position; 3] {
        [&self.history, &self.system, &self.console].map(LineReader::position)
    }

    fn seek(&mut self, to: [Position; 3]) -> std::io::Result<()> {
        self.history.seek(to[0])?;
        self.system.seek(to[1])?;
        self.console.seek(to[2])
    }

    /// What the server acknowledges must not be lost here, or later lines would take the place of those.
    fn sync(&self) -> std::io::Result<()> {
        self.history.sync()?;
        self.system.sync()?;
        self.console.sync()
    }
}

/// Whole lines while there is `room`; one at least where nothing has been taken from `most` yet.
fn take(reader: &mut LineReader, room: &mut usize, most: usize) -> std::io::Result<Vec<String>> {
    let mut lines = Vec::new();
    loop {
        let before = reader.position();
        let Some(line) = reader.next()? else { break };
        if line.len() > *room && *room < most {
            reader.seek(before)?;
            break;
        }
        *room = room.saturating_sub(line.len().max(1));
        lines.push(line);
    }
    Ok(lines)
}
