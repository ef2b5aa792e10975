//! `flow chat`: a conversation with the model that a run has trained.

use clap::Args;

use super::error::{CliError, Exit};
use super::handover;
use super::output::Output;

/// Talk with the model that a run has trained, and with its base
///
/// `/tuned` and `/base` choose who answers, `/system TEXT` sets the system message, `/reset` forgets the conversation,
/// `/help` lists all. Ctrl-C stops an answer, the end of the input leaves. Answers are no medical advice.
#[derive(Debug, Args)]
pub struct Arguments {
    /// An id, the beginning of one, `latest`, or `latest~1` for the one before
    #[arg(value_name = "RUN", default_value = "latest")]
    pub run: String,

    /// The node or stage that trained, where the run has several
    #[arg(long, value_name = "NODE")]
    pub node: Option<String>,

    /// Begin with the base instead of the tuned model
    #[arg(long)]
    pub base: bool,

    /// Longest answer, in tokens
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub max_new_tokens: usize,

    /// 0 takes the likeliest token each time
    #[arg(long, value_name = "T", default_value_t = 0.7)]
    pub temperature: f64,

    /// The same seed gives the same answers [default: another each time]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,

    /// Precision of the arithmetic; auto is bf16 where the processor computes it natively
    #[arg(long, value_name = "DTYPE", default_value = "auto", value_parser = ["auto", "f32", "bf16"])]
    pub dtype: String,

    /// Send nothing over the network
    #[arg(long)]
    pub offline: bool,
}

/// Runs the conversation; only `flow-lm` can.
pub type ModelChat = fn(&Arguments, &Output) -> Result<Exit, CliError>;

pub fn run(
    arguments: &Arguments,
    model: Option<ModelChat>,
    output: &Output,
) -> Result<Exit, CliError> {
    match model {
        Some(model) => model(arguments, output),
        None => Err(handover::to_language_model()),
    }
}

#[cfg(feature = "torch")]
pub use conversation::with_model;

#[cfg(feature = "torch")]
mod conversation {
    use std::io::{BufRead as _, IsTerminal as _, Write as _};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use rustyline::DefaultEditor;
    use rustyline::error::ReadlineError;

    use super::Arguments;
    use crate::chat::{Decoding, Engine, Job, Limits, NOTICE, Piece, Refused, Voice};
    use crate::cli::error::{CliError, Exit};
    use crate::cli::output::Output;
    use crate::cli::speaker::{self, Wanted};
    use crate::lm::{Finish, Message};

    const HELP: &str = "/tuned, /base   who answers\n/system [TEXT]  the system message; without TEXT the one of the training\n/reset          forget the conversation\n/help           this\n/quit           leave, as the end of the input does";

    /// The [`super::ModelChat`] of `flow-lm`.
    pub fn with_model(arguments: &Arguments, output: &Output) -> Result<Exit, CliError> {
        let limits = Limits {
            slots: 1,
            queue: 1,
            context: usize::MAX,
        };
        let wanted = Wanted {
            run: &arguments.run,
            node: arguments.node.as_deref(),
            dtype: &arguments.dtype,
            offline: arguments.offline,
        };
        let (engine, title) = speaker::start(&wanted, limits, output)?;
        let stopped = Arc::new(AtomicBool::new(false));
        let flag = stopped.clone();
        ctrlc::set_handler(move || flag.store(true, Ordering::SeqCst)).map_err(|error| {
            CliError::failed(format!("signals cannot be handled: {error}"), None)
        })?;
        let mut decoding = Decoding {
            max_new_tokens: arguments.max_new_tokens,
            ..Decoding::default()
        };
        decoding.sample.temperature = arguments.temperature;
        output.tell(&format!(
            "{title}\n{}\n`/help` lists what can be typed besides questions",
            output.messages.yellow(NOTICE)
        ));
        let mut talk = Talk {
            engine,
            voice: if arguments.base {
                Voice::Base
            } else {
                Voice::Tuned
            },
            system: None,
            history: Vec::new(),
            decoding,
            seed: arguments.seed,
            stopped,
            output,
        };
        let mut input = Input::new(output)?;
        while let Some(line) = input.line(talk.voice.name())? {
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
        stopped: Arc<AtomicBool>,
        output: &'a Output,
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
                "/base" | "/tuned" => {
                    self.voice = if word == "/base" {
                        Voice::Base
                    } else {
                        Voice::Tuned
                    };
                    self.output
                        .tell(&format!("the {} model answers", self.voice.name()));
                }
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

        fn ask(&mut self, question: &str) -> Result<(), CliError> {
            let mut messages: Vec<Message> = self.system.iter().map(Message::system).collect();
            messages.extend(self.history.iter().cloned());
            messages.push(Message::user(question));
            let mut decoding = self.decoding.clone();
            decoding.sample.seed = self.seed.unwrap_or_else(|| {
                messages.len() as u64 ^ jiff::Timestamp::now().as_nanosecond() as u64
            });
            let (job, mut answer) =
                Job::new(self.voice, self.engine.prompts.encode(&messages)?, decoding);
            if let Err(refused) = self.engine.submit(job) {
                self.refuse(&refused);
                return Ok(());
            }
            self.stopped.store(false, Ordering::SeqCst);
            let (mut text, mut ended) = (String::new(), false);
            while let Some(piece) = answer.pieces.blocking_recv() {
                match piece {
                    Piece::Text(more) => {
                        // Blanks at the beginning say nothing.
                        let more = if text.is_empty() {
                            more.trim_start().to_owned()
                        } else {
                            more
                        };
                        self.write(&more)?;
                        text.push_str(&more);
                    }
                    Piece::Done { finish, .. } => {
                        ended = true;
                        self.write("\n")?;
                        if finish == Finish::Length {
                            self.output.tell(
                                &self.output.messages.dim(
                                    "cut at the longest answer; `--max-new-tokens` allows more",
                                ),
                            );
                        }
                    }
                    Piece::Failed(message) => {
                        self.output.failure(&message, None);
                        return Ok(());
                    }
                }
                if self.stopped.swap(false, Ordering::SeqCst) {
                    self.write("\n")?;
                    self.output.tell(&self.output.messages.dim("stopped"));
                    ended = true;
                    break;
                }
            }
            if !ended {
                let help = Some("start `flow chat` again".to_owned());
                return Err(CliError::failed("the model has broken off", help));
            }
            self.history.push(Message::user(question));
            self.history.push(Message::assistant(text.trim_end()));
            Ok(())
        }

        fn refuse(&self, refused: &Refused) {
            match refused {
                Refused::TooLong { tokens, limit } => self.output.failure(
                    &format!("conversation and answer have up to {tokens} tokens, the model's context has {limit}"),
                    Some("`/reset` begins a new conversation"),
                ),
                Refused::Full | Refused::Gone => self.output.failure("the model is no longer there", Some("start `flow chat` again")),
            }
        }

        fn write(&self, text: &str) -> Result<(), CliError> {
            let mut out = std::io::stdout().lock();
            match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {
                    Err(CliError::Closed)
                }
                other => Ok(other?),
            }
        }
    }

    /// Where lines come from: an editor in a terminal, else standard input as it is.
    enum Input {
        Editor(Box<DefaultEditor>),
        Lines,
    }

    impl Input {
        fn new(output: &Output) -> Result<Self, CliError> {
            if !std::io::stdin().is_terminal() {
                return Ok(Self::Lines);
            }
            match DefaultEditor::new() {
                Ok(editor) => Ok(Self::Editor(Box::new(editor))),
                Err(error) => {
                    output.warning(&format!("lines cannot be edited: {error}"));
                    Ok(Self::Lines)
                }
            }
        }

        /// The next line; none at the end of the input.
        fn line(&mut self, voice: &str) -> Result<Option<String>, CliError> {
            match self {
                Self::Lines => {
                    let mut line = String::new();
                    Ok((std::io::stdin().lock().read_line(&mut line)? > 0).then_some(line))
                }
                Self::Editor(editor) => loop {
                    match editor.readline(&format!("{voice}> ")) {
                        Ok(line) => {
                            // Only the history of this process; nothing is kept.
                            let _ = editor.add_history_entry(&line);
                            return Ok(Some(line));
                        }
                        Err(ReadlineError::Interrupted) => {}
                        Err(ReadlineError::Eof) => return Ok(None),
                        Err(error) => return Err(CliError::failed(error.to_string(), None)),
                    }
                },
            }
        }
    }
}
