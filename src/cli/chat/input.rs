//! Where the lines of a conversation come from: an editor in a terminal, else standard input as it is.

use std::io::{BufRead as _, IsTerminal as _};

use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

use crate::cli::error::CliError;
use crate::cli::output::Output;

pub enum Input {
    Editor(Box<DefaultEditor>),
    Lines,
}

impl Input {
    pub fn new(output: &Output) -> Self {
        if !std::io::stdin().is_terminal() {
            return Self::Lines;
        }
        match DefaultEditor::new() {
            Ok(editor) => Self::Editor(Box::new(editor)),
            Err(error) => {
                output.warning(&format!("lines cannot be edited: {error}"));
                Self::Lines
            }
        }
    }

    /// The next line; none at the end of the input.
    pub fn line(&mut self, prompt: &str, output: &Output) -> Result<Option<String>, CliError> {
        match self {
            Self::Lines => {
                let mut line = String::new();
                Ok((std::io::stdin().lock().read_line(&mut line)? > 0).then_some(line))
            }
            Self::Editor(editor) => loop {
                match editor.readline(prompt) {
                    Ok(line) => {
                        // Only the history of this process; nothing is kept.
                        let _ = editor.add_history_entry(&line);
                        return Ok(Some(line));
                    }
                    Err(ReadlineError::Interrupted) => {
                        output.tell(&output.messages.dim("`/quit` or Ctrl-D leaves"));
                    }
                    Err(ReadlineError::Eof) => return Ok(None),
                    Err(error) => return Err(CliError::failed(error.to_string(), None)),
                }
            },
        }
    }
}
