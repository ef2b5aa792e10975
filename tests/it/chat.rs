//! `flow chat`: a conversation with the model that a run has trained, through a pipe and in a terminal.

use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::json;

use crate::support::Project;
use crate::support::tuned::tuned;

/// Types `lines` into `flow chat`.
fn typed(project: &Project, arguments: &[&str], lines: &str) -> crate::support::Outcome {
    let mut child = project
        .command(
            &[
                &["chat", "--dtype", "f32", "--max-new-tokens", "12"],
                arguments,
            ]
            .concat(),
        )
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(lines.as_bytes())
        .unwrap();
    project.outcome(child.wait_with_output().unwrap()).success()
}

#[test]
fn a_conversation_in_the_terminal() {
    let project = tuned();
    let cold = ["--temperature", "0"];
    let both = typed(
        &project,
        &cold,
        "What is case 3?\n/reset\n/base\nWhat is case 3?\n",
    );
    let tuned = typed(&project, &cold, "What is case 3?\n").stdout;
    let base = typed(
        &project,
        &["--temperature", "0", "--base"],
        "What is case 3?\n",
    )
    .stdout;
    assert_eq!(both.stdout, format!("{tuned}{base}"));
    assert!(
        both.stderr.contains("no medical advice") && both.stderr.contains("the base model answers"),
        "{}",
        both.stderr
    );
    // What was said before counts, until it is forgotten.
    let again = typed(&project, &cold, "Hello.\nWhat is case 3?\n").stdout;
    assert!(!again.ends_with(&tuned), "{again}");
    let system = typed(
        &project,
        &cold,
        "/system\n/system Be kind.\n/nothing\n/quit\nWhat?\n",
    );
    assert_eq!(system.stdout, "");
    assert!(system.stderr.ends_with(
        "the system message is: Answer in short.\nthe system message is: Be kind.\nerror: there is no `/nothing`\n  help: `/help` lists what there is\n"
    ), "{}", system.stderr);
}

/// What a terminal shows while `steps` are typed: each waits for its first text and types the second.
fn in_a_terminal(project: &Project, arguments: &[&str], steps: &[(&str, &str)]) -> String {
    let flow = project.command(&[&["chat", "--dtype", "f32"], arguments].concat());
    let mut terminal = Command::new("python3");
    terminal
        .arg(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/it/support/terminal.py"
        ))
        .arg(json!(steps).to_string())
        .arg(flow.get_program())
        .args(flow.get_args())
        .current_dir(project.path("."))
        .env("TERM", "xterm");
    for (name, value) in flow.get_envs() {
        match value {
            Some(value) => terminal.env(name, value),
            None => terminal.env_remove(name),
        };
    }
    let output = terminal
        .output()
        .expect("Python is there, as the set-up needs it");
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{:?}\n{shown}", output.status);
    shown
}

/// What a line editor sends when it begins to read a line: the terminal is to mark what is pasted.
const READS: &str = "\u{1b}[?2004h";
const LEFT: &str = "\u{1b}[D";
const UP: &str = "\u{1b}[A";
const BACKSPACE: &str = "\u{7f}";
const CTRL_C: &str = "\u{3}";
const CTRL_D: &str = "\u{4}";

#[test]
fn a_line_is_edited_and_ctrl_d_leaves() {
    let project = tuned();
    let cold = ["--temperature", "0"];
    let expected = typed(&project, &cold, "What is case 3?\n").stdout;
    let mended = [LEFT, LEFT, LEFT, BACKSPACE, BACKSPACE, "ase\r"].concat();
    let shown = in_a_terminal(
        &project,
        &[&cold[..], &["--max-new-tokens", "12"]].concat(),
        &[
            (READS, &format!("What is cesx{BACKSPACE} 3?{mended}")),
            (READS, "/reset\r"),
            // The line before the last.
            (READS, &format!("{UP}{UP}\r")),
            (READS, CTRL_C),
            ("`/quit` or Ctrl-D leaves", ""),
            (READS, CTRL_D),
        ],
    );
    // A terminal is spared what would steer it.
    let plain = |text: &str| text.replace(|letter: char| letter.is_control(), "");
    let answers = plain(&shown).matches(&plain(&expected)).count();
    assert!(answers >= 2, "{expected}\n{shown}");
}

#[test]
fn ctrl_c_stops_the_answer_and_not_the_program() {
    let project = tuned();
    let shown = in_a_terminal(
        &project,
        &["--base", "--max-new-tokens", "3000"],
        &[
            (READS, "What is case 3?\r"),
            // The editor has given the terminal back: the answer begins.
            ("\u{1b}[?2004l", CTRL_C),
            ("stopped", ""),
            (READS, "/tuned\r"),
            ("the tuned model answers", ""),
            (READS, "/quit\r"),
        ],
    );
    assert!(shown.contains("tuned> "), "{shown}");
}
