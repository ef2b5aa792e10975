//! Where text goes: results to standard output, everything else to standard error, colours only where they are wanted.

use std::io::{self, ErrorKind, IsTerminal as _, Write as _};

use std::path::Path;

use serde_json::Value;

use super::error::CliError;
use crate::config::display;
use crate::engine::Sink;
use crate::ui::{Lines, Progress, Style, terminal_width};

#[derive(Debug, Clone, Copy)]
pub struct Output {
    /// How results are painted.
    pub style: Style,
    /// How messages are painted.
    pub messages: Style,
    /// Columns of the terminal, where standard output is one.
    pub width: Option<u16>,
    terminal: bool,
}

impl Output {
    /// Looks at the terminal and at `NO_COLOR` (no-color.org).
    pub fn of_process() -> Self {
        let colour = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
            && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        let (stdout, stderr) = (io::stdout().is_terminal(), io::stderr().is_terminal());
        let width = terminal_width(false);
        Self {
            style: Style::new(colour && stdout),
            messages: Style::new(colour && stderr),
            width,
            terminal: stderr,
        }
    }

    /// A result.
    pub fn print(&self, text: &str) -> Result<(), CliError> {
        let mut stdout = io::stdout().lock();
        let end = if text.is_empty() || text.ends_with('\n') {
            ""
        } else {
            "\n"
        };
        match write!(stdout, "{text}{end}").and_then(|()| stdout.flush()) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(CliError::Closed),
            other => Ok(other?),
        }
    }

    /// A result for people; where a text in it was cut, `whole` says how to see it uncut.
    pub fn print_cut(&self, text: &str, whole: &str) -> Result<(), CliError> {
        self.print(text)?;
        if text.contains('…') {
            self.tell(&self.messages.dim(&format!("… is cut; {whole}")));
        }
        Ok(())
    }

    /// A result for programs.
    pub fn print_json(&self, value: &Value) -> Result<(), CliError> {
        self.print(&format!("{value:#}"))
    }

    /// A page into a file that the user named, and where it is.
    pub fn save(&self, path: &Path, page: &str) -> Result<(), CliError> {
        let folder = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty());
        if let Some(folder) = folder.filter(|folder| !folder.exists()) {
            return Err(CliError::wrong(
                format!(
                    "`{}` cannot be written: there is no folder `{}`",
                    path.display(),
                    folder.display()
                ),
                format!(
                    "make it with `mkdir -p {}`, or name another file",
                    folder.display()
                ),
            ));
        }
        fs_err::write(path, page)?;
        self.print(&display(path))
    }

    /// A message.
    pub fn tell(&self, text: &str) {
        // Without standard error there is nobody to tell.
        let _ = writeln!(io::stderr(), "{text}");
    }

    pub fn error(&self, error: &CliError) {
        match error {
            CliError::Diagnostics(diagnostics) => {
                let width = terminal_width(true).map_or(120, usize::from);
                let mut text = diagnostics.render(self.messages.colour(), width);
                let count = diagnostics.problems.len();
                if count > 1 {
                    text.push_str(&format!("{count} problems found; nothing was run\n"));
                }
                let _ = io::stderr().write_all(text.as_bytes());
            }
            CliError::Message { message, help, .. } => self.failure(message, help.as_deref()),
            CliError::Closed => {}
        }
    }

    /// Something that is not as it should be, and does not stop anything.
    pub fn warning(&self, message: &str) {
        self.tell(&format!("{} {message}", self.messages.yellow("warning:")));
    }

    /// One thing that went wrong, and what to do.
    pub fn failure(&self, message: &str, help: Option<&str>) {
        self.tell(&format!("{} {message}", self.messages.red("error:")));
        if let Some(help) = help.filter(|help| !help.is_empty()) {
            self.tell(&format!("  {} {help}", self.messages.cyan("help:")));
        }
    }

    /// What shows a run while it is on.
    pub fn sink(&self) -> Box<dyn Sink> {
        if self.terminal {
            Box::new(Progress::new(self.messages))
        } else {
            Box::new(Lines::new(self.messages))
        }
    }
}

/// Log lines of the program itself go to standard error as `FLOW_LOG` asks (`debug`, `flow::cache=trace`).
pub fn start_logging() {
    let Ok(filter) = std::env::var("FLOW_LOG") else {
        return;
    };
    let filter = tracing_subscriber::EnvFilter::builder().parse_lossy(filter);
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .compact()
        .init();
}
