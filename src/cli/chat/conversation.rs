//! The conversation: what a line asks for, and the answer as it is written.

use std::borrow::Cow;
use std::io::{IsTerminal as _, Write as _};

use futures_util::FutureExt as _;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::Arguments;
use super::input::Input;
use crate::chat::{Answer, Decoding, Engine, Job, Limits, NOTICE, Piece, Refused, Voice};
use crate::cli::error::{CliError, Exit};
use crate::cli::output::Output;
use crate::cli::speaker;
use crate::lm::{Finish, Message};

const HELP: &str = "\
/tuned, /base   who answers
/system [TEXT]  the system message; without TEXT the one of the training
/reset          forget the conversation
/help           this
/quit           leave, as Ctrl-D does
Ctrl-C stops an answer.";

/// The [`super::ModelChat`] of `flow-lm`.
pub fn with_model(arguments: &Arguments, output: &Output) -> Result<Exit, CliError> {
    let limits = Limits {
        slots: 1,
        queue: 1,
        context: usize::MAX,
    };
    let (engine, title) = speaker::start(&arguments.speaker, limits, output)?;
    let mut decoding = Decoding {
        max_new_tokens: arguments.max_new_tokens,
        ..Decoding::default()
    };
    decoding.sample.temperature = arguments.temperature;
    output.tell(&format!(
        "{title}\n{}\n`/help` lists what can be typed besides questions",
        output.messages.yellow(NOTICE)
    ));
    let runtime = Builder::new_current_thread().enable_all().build()?;
    // In a pipe Ctrl-C ends the program, as it ends any.
    let interrupt = match std::io::stdin().is_terminal() {
        true => Some(runtime.block_on(async { signal(SignalKind::interrupt()) })?),
        false => None,
    };
    let mut talk = Talk {
        engine,
        voice: match arguments.base {
            true => Voice::Base,
            false => Voice::Tuned,
        },
        system: None,
        history: Vec::new(),
        decoding,
        seed: arguments.seed,
        runtime,
        interrupt,
        output,
    };
    let mut input = Input::new(output);
    while let Some(line) = input.line(&format!("{}> ", talk.voice.name()), output)? {
        if !talk.take(line.trim())? {
            break;
        }
    }
    Ok(Exit::Ok)
}

struct Talk<'a> {
    engine: Engine,
    voice: Voice,
    /// None: that of the training.
    system: Option<String>,
    history: Vec<Message>,
    decoding: Decoding,
    seed: Option<u64>,
    /// Waits for pieces of an answer and for Ctrl-C.
    runtime: Runtime,
    interrupt: Option<Signal>,
    output: &'a Output,
}

/// How an answer came to its end.
enum End {
    Finished(Finish),
    /// By Ctrl-C.
    Stopped,
    Failed(String),
    /// The engine is gone.
    BrokenOff,
}

impl Talk<'_> {
    /// A line of the user; whether the conversation goes on.
    fn take(&mut self, line: &str) -> Result<bool, CliError> {
        let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        match word {
            "" => {}
            "/quit" | "/exit" => return Ok(false),
            "/help" => self.output.tell(HELP),
            "/reset" => {
                self.history.clear();
                self.output.tell("the conversation is forgotten");
            }
            "/base" => self.switch(Voice::Base),
            "/tuned" => self.switch(Voice::Tuned),
            "/system" => {
                self.system = Some(rest.trim().to_owned()).filter(|text| !text.is_empty());
                let now = self.system.as_ref().unwrap_or(&self.engine.prompts.system);
                self.output.tell(&format!("the system message is: {now}"));
            }
            _ if word.starts_with('/') => self.output.failure(
                &format!("there is no `{word}`"),
                Some("`/help` lists what there is"),
            ),
            _ => self.ask(line)?,
        }
        Ok(true)
    }

    fn switch(&mut self, voice: Voice) {
        self.voice = voice;
        self.output
            .tell(&format!("the {} model answers", voice.name()));
    }

    fn ask(&mut self, question: &str) -> Result<(), CliError> {
        let mut messages: Vec<Message> = self.system.iter().map(Message::system).collect();
        messages.extend(self.history.iter().cloned());
        messages.push(Message::user(question));
        let mut decoding = self.decoding.clone();
        decoding.sample.seed = self.seed.unwrap_or_else(|| {
            messages.len() as u64 ^ jiff::Timestamp::now().as_nanosecond() as u64
        });
        let prompt = self.engine.prompts.encode(&messages)?;
        let (job, answer) = Job::new(self.voice, prompt, decoding);
        if let Err(refused) = self.engine.submit(job) {
            self.refuse(&refused);
            return Ok(());
        }
        let (text, end) = self
            .runtime
            .block_on(written(answer, self.interrupt.as_mut()))?;
        let remark = |text: &str| self.output.tell(&self.output.messages.dim(text));
        match end {
            End::Finished(Finish::Stop) => {}
            End::Finished(Finish::Length) => {
                remark("cut at the longest answer; `--max-new-tokens` allows more");
            }
            End::Stopped => remark("stopped"),
            End::Failed(message) => {
                self.output.failure(&message, None);
                return Ok(());
            }
            End::BrokenOff => {
                let help = Some("start `flow chat` again".to_owned());
                return Err(CliError::failed("the model has broken off", help));
            }
        }
        self.history.push(Message::user(question));
        self.history.push(Message::assistant(text.trim_end()));
        Ok(())
    }

    fn refuse(&self, refused: &Refused) {
        let (message, help) = match refused {
            Refused::TooLong { tokens, limit } => (
                format!(
                    "conversation and answer have up to {tokens} tokens, the model's context has {limit}"
                ),
                "`/reset` begins a new conversation; a smaller `--max-new-tokens` leaves more room",
            ),
            Refused::Full | Refused::Gone => (
                "the model is no longer there".to_owned(),
                "start `flow chat` again",
            ),
        };
        self.output.failure(&message, Some(help));
    }
}

/// Writes an answer to standard output as it comes, until its end or Ctrl-C.
async fn written(
    mut answer: Answer,
    mut interrupt: Option<&mut Signal>,
) -> Result<(String, End), CliError> {
    let mut text = String::new();
    let end = loop {
        let interrupted = async {
            match &mut interrupt {
                Some(signal) => signal.recv().await,
                None => std::future::pending().await,
            }
        };
        let piece = tokio::select! {
            biased;
            _ = interrupted => break End::Stopped,
            piece = answer.pieces.recv() => piece,
        };
        match piece {
            Some(Piece::Text(more)) => {
                // Blanks at the beginning say nothing.
                let more = match text.is_empty() {
                    true => more.trim_start(),
                    false => &more,
                };
                write(more)?;
                text.push_str(more);
            }
            Some(Piece::Done { finish, .. }) => break End::Finished(finish),
            Some(Piece::Failed(message)) => break End::Failed(message),
            None => break End::BrokenOff,
        }
    };
    write("\n")?;
    if let Some(interrupt) = interrupt {
        // What was pressed more than once, or after the end, is not meant for the next answer.
        tokio::task::yield_now().await;
        while interrupt.recv().now_or_never().is_some() {}
    }
    Ok((text, end))
}

/// To a terminal without what would steer it: a model may write anything.
fn write(text: &str) -> Result<(), CliError> {
    let stdout = std::io::stdout();
    let steers = |letter: char| letter.is_control() && !matches!(letter, '\n' | '\t');
    let shown: Cow<str> = match stdout.is_terminal() {
        true => text.replace(steers, "").into(),
        false => text.into(),
    };
    let mut out = stdout.lock();
    match out.write_all(shown.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Err(CliError::Closed),
        other => Ok(other?),
    }
}
