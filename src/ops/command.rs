//! `command`: runs a shell script over its inputs; what it writes into `$OUT` is its output.
//!
//! The script sees no more of the environment than is named here, so that a result depends on what was declared.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use fs_err as fs;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use serde::Deserialize;

use super::{Context, Op, OpError, Outputs, Problem};
use crate::cache::{Artifact, quote};
use crate::config::{ArtifactKind, Columns, Interface, Param, ParamKind, Port};
use crate::engine::Level;
use crate::graph::Node;

/// Taken over from flow's own environment; none of them may change what a script computes.
const KEPT: [&str; 5] = ["PATH", "HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH"];
/// The system's shell (as system(3) takes it). Looked for on the PATH it could only be started by a `fork`, see [`supervise`].
const SHELL: &str = "/bin/sh";
/// Lines of stderr shown when a script fails.
const TAIL: usize = 20;
/// How often a running script is checked for an interrupt.
const TICK: Duration = Duration::from_millis(50);
/// How long a script may take to end when asked to.
const GRACE: Duration = Duration::from_secs(2);

pub struct Command;

#[derive(Debug, Deserialize)]
struct Params {
    run: String,
    #[serde(default)]
    files: Vec<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    #[serde(default)]
    pass_env: Vec<String>,
    timeout: Option<f64>,
}

impl Op for Command {
    fn name(&self) -> &'static str {
        "command"
    }

    fn version(&self) -> u32 {
        2
    }

    fn interface(&self) -> Interface {
        let text = || Box::new(ParamKind::Text);
        let params = [
            (
                "run",
                Param::required(
                    ParamKind::Text,
                    "the script, run by `sh -e` in an empty folder; each input is a path in `$IN_<name>`, and what is written into the folder `$OUT` is the output",
                ),
            ),
            (
                "files",
                Param::default(
                    ParamKind::List(Box::new(ParamKind::Path)),
                    serde_json::json!([]),
                    "further files it reads; their full paths, one a line, are in `$FILES`",
                ),
            ),
            (
                "env",
                Param::default(
                    ParamKind::Map(text()),
                    serde_json::json!({}),
                    "environment variables",
                ),
            ),
            (
                "pass_env",
                Param::default(
                    ParamKind::List(text()),
                    serde_json::json!([]),
                    "names of variables passed on from the environment; their values, such as secrets, are not in the fingerprint",
                ),
            ),
            (
                "timeout",
                Param::optional(
                    ParamKind::Number {
                        min: Some(0.0),
                        max: None,
                    },
                    "seconds after which the script is ended",
                )
                .unhashed(),
            ),
        ];
        Interface {
            doc: "Runs a shell script. A table arrives as a Parquet file, files as a folder."
                .to_owned(),
            params: params
                .into_iter()
                .map(|(name, param)| (name.to_owned(), param))
                .collect(),
            inputs: BTreeMap::new(),
            outputs: BTreeMap::from([("out".to_owned(), Port::files("everything in `$OUT`"))]),
            open_inputs: true,
        }
    }

    fn columns(
        &self,
        node: &Node,
        _: &BTreeMap<String, Option<Columns>>,
    ) -> Result<BTreeMap<String, Option<Columns>>, Vec<Problem>> {
        let mut seen: BTreeMap<String, &str> = BTreeMap::new();
        let mut problems = Vec::new();
        for input in &node.inputs {
            if let Some(other) = seen.insert(variable(&input.port), &input.port) {
                let message = format!(
                    "the inputs `{other}` and `{}` are both `${}`",
                    input.port,
                    variable(&input.port)
                );
                problems.push(Problem {
                    at: format!("inputs.{}", input.port),
                    message,
                    help: Some("rename one of them".to_owned()),
                });
            }
        }
        let names = node
            .params
            .get("env")
            .and_then(|env| env.as_object())
            .into_iter()
            .flatten()
            .map(|(name, _)| (format!("env.{name}"), name.as_str()));
        let passed = node
            .params
            .get("pass_env")
            .and_then(|names| names.as_array())
            .into_iter()
            .flatten()
            .enumerate();
        let passed =
            passed.filter_map(|(index, name)| Some((format!("pass_env.{index}"), name.as_str()?)));
        for (at, name) in names.chain(passed) {
            if name.is_empty() || name.contains(['=', '\0']) {
                let message = format!("`{name}` cannot be the name of an environment variable");
                problems.push(Problem {
                    at,
                    message,
                    help: None,
                });
            } else if name == "OUT" || name == "FILES" || name.starts_with("IN_") {
                let message = format!("`{name}` is set by flow itself");
                problems.push(Problem {
                    at,
                    message,
                    help: Some("choose another name".to_owned()),
                });
            }
        }
        if problems.is_empty() {
            Ok(BTreeMap::from([("out".to_owned(), None)]))
        } else {
            Err(problems)
        }
    }
}

/// The environment variable of an input.
fn variable(port: &str) -> String {
    let safe = |letter: char| {
        if letter.is_ascii_alphanumeric() {
            letter
        } else {
            '_'
        }
    };
    format!("IN_{}", port.chars().map(safe).collect::<String>())
}

/// Runs the script to its end.
///
/// # Errors
/// An exit code other than 0, a time-out, an interrupt; nothing of `$OUT` is kept then.
pub fn run(context: &mut Context) -> Result<Outputs, OpError> {
    let params: Params = context.params()?;
    // Nothing of an earlier, unfinished try is used again.
    let [work, out, inputs] = ["work", "out", "in"].map(|name| context.scratch.join(name));
    for folder in [&work, &out, &inputs] {
        match fs::remove_dir_all(folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
    }
    fs::create_dir(&work)?;
    fs::create_dir(&out)?;
    let mut process = Process::new(SHELL);
    process
        .args(["-e", "-c", &params.run])
        .current_dir(&work)
        .env_clear();
    let kept = KEPT
        .iter()
        .copied()
        .chain(params.pass_env.iter().map(String::as_str));
    process.envs(kept.filter_map(|name| Some((name, std::env::var_os(name)?))));
    process.envs(&params.env);
    for (port, artifact) in context.inputs.clone() {
        process.env(variable(&port), place(context, &port, &artifact, &inputs)?);
    }
    // Without a newline at the end, so that `< "$FILES"` reads the one there is.
    let mut files = OsString::new();
    for index in 0..params.files.len() {
        let file = context
            .paths
            .get(&format!("files.{index}"))
            .ok_or_else(|| OpError::new(format!("`files.{index}` was not found")))?;
        if index > 0 {
            files.push("\n");
        }
        files.push(std::path::absolute(file)?);
    }
    process
        .env("FILES", files)
        .env("OUT", std::path::absolute(&out)?);
    if !context.gpus.is_empty() {
        let gpus: Vec<_> = context.gpus.iter().map(u32::to_string).collect();
        process.env("CUDA_VISIBLE_DEVICES", gpus.join(","));
    }
    let deadline = params
        .timeout
        .filter(|seconds| seconds.is_finite())
        .map(|seconds| Instant::now() + Duration::from_secs_f64(seconds));
    let (status, tail) = supervise(context, process, deadline)?;
    if !status.success() {
        let end = match (status.code(), status.signal()) {
            (Some(code), _) => format!("the script ended with exit code {code}"),
            (None, signal) => format!(
                "the script was ended by signal {}",
                signal.unwrap_or_default()
            ),
        };
        let shown: String = tail.iter().map(|line| format!("\n  {line}")).collect();
        return Err(OpError::with_help(
            format!("{end}{shown}"),
            "its whole output is in the node's log",
        ));
    }
    context.give_files("out", &out)?;
    context.finish()
}

/// An input as a path: files where they lie, a table as a Parquet file with its rows in a fixed order.
fn place(
    context: &Context,
    port: &str,
    artifact: &Artifact,
    folder: &Path,
) -> Result<PathBuf, OpError> {
    if artifact.kind == ArtifactKind::Files {
        return Ok(std::path::absolute(
            context.cache().object_path(&artifact.digest),
        )?);
    }
    fs::create_dir_all(folder)?;
    let path = std::path::absolute(folder.join(format!(
        "{}.parquet",
        variable(port).trim_start_matches("IN_")
    )))?;
    let columns = context.cache().columns(&artifact.digest)?;
    let order = if context.cache().is_ordered(&artifact.digest) {
        ""
    } else if columns.iter().any(|(name, _)| name == "id") {
        // Where an id is not unique the other columns decide.
        "order by id, all"
    } else {
        "order by all"
    };
    let order = if order == "order by id, all" {
        let rest = columns
            .iter()
            .filter(|(name, _)| name != "id")
            .map(|(name, _)| format!(", {}", quote(name)));
        format!("order by id{}", rest.collect::<String>())
    } else {
        order.to_owned()
    };
    let target = path.display().to_string().replace('\'', "''");
    context.with_inputs(|connection| {
        Ok(connection.execute_batch(&format!(
            "copy (select * from {} {order}) to '{target}' (format parquet)",
            quote(port)
        ))?)
    })?;
    Ok(path)
}

/// Starts the script in a process group of its own and waits for its end, taking what it prints into the node's log.
/// Returns how it ended and the last lines of its stderr.
fn supervise(
    context: &Context,
    mut process: Process,
    deadline: Option<Instant>,
) -> Result<(ExitStatus, VecDeque<String>), OpError> {
    // Nothing is asked of the child before it starts `sh`: with that, starting it would be a `fork`, which takes longer
    // the more memory flow uses, instead of a `vfork`.
    process
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    let child = process.spawn().map_err(|error| {
        OpError::with_help(
            format!("`{SHELL}` cannot be started: {error}"),
            "scripts need a POSIX shell there",
        )
    })?;
    let mut group = Group { child, pid: None };
    let pid = i32::try_from(group.child.id())
        .ok()
        .and_then(Pid::from_raw)
        .ok_or_else(|| OpError::new("the script has no process number"))?;
    group.pid = Some(pid);
    let ended = pidfd_open(pid, PidfdFlags::empty()).map_err(std::io::Error::from)?;
    let mut outputs = [
        Lines::new(group.child.stdout.take().map(OwnedFd::from)),
        Lines::new(group.child.stderr.take().map(OwnedFd::from)),
    ];
    let mut tail = VecDeque::new();
    let mut stop: Option<(Instant, OpError)> = None;
    loop {
        let over = wait(&ended, &mut outputs)?;
        for (index, lines) in outputs.iter_mut().enumerate() {
            lines.take(over, |line| {
                if index == 1 {
                    tail.push_back(line.to_owned());
                    tail.drain(..tail.len().saturating_sub(TAIL));
                }
                context.log(Level::Debug, line);
            });
        }
        if over {
            break;
        }
        match &stop {
            Some((asked, _)) if asked.elapsed() > GRACE => group.signal(Signal::KILL),
            Some(_) => {}
            None => {
                let late = deadline.is_some_and(|deadline| Instant::now() >= deadline);
                if context.cancel.is_cancelled() {
                    stop = Some((Instant::now(), OpError::Cancelled));
                } else if late {
                    stop = Some((
                        Instant::now(),
                        OpError::with_help(
                            "the script did not end in time",
                            "raise `timeout`, or find out why it hangs",
                        ),
                    ));
                }
                if stop.is_some() {
                    group.signal(Signal::TERM);
                }
            }
        }
    }
    // What the script left running in the background must not write any more.
    group.signal(Signal::KILL);
    let status = group.child.wait()?;
    group.pid = None;
    match stop {
        Some((_, error)) => Err(error),
        None => Ok((status, tail)),
    }
}

/// A child with its process group; ended when dropped, on whatever way out.
struct Group {
    child: Child,
    /// `None` once the child was waited for: its number may then belong to another.
    pid: Option<Pid>,
}

impl Group {
    fn signal(&self, signal: Signal) {
        if let Some(pid) = self.pid {
            // A group that has ended is what was wanted.
            let _ = kill_process_group(pid, signal);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if self.pid.is_some() {
            self.signal(Signal::KILL);
            // Nothing can be done about a child that cannot be waited for.
            let _ = self.child.wait();
        }
    }
}

/// Waits a moment for output or the child's end; says whether it has ended.
fn wait(ended: &OwnedFd, outputs: &mut [Lines; 2]) -> Result<bool, OpError> {
    let mut watched = vec![PollFd::new(ended, PollFlags::IN)];
    watched.extend(
        outputs
            .iter()
            .filter_map(|lines| lines.pipe.as_ref())
            .map(|pipe| PollFd::new(pipe, PollFlags::IN)),
    );
    let tick = Timespec {
        tv_sec: 0,
        tv_nsec: TICK.subsec_nanos().into(),
    };
    match poll(&mut watched, Some(&tick)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(!watched[0].revents().is_empty()),
        Err(error) => Err(std::io::Error::from(error).into()),
    }
}

/// A pipe read line by line without waiting.
struct Lines {
    pipe: Option<OwnedFd>,
    partial: Vec<u8>,
}

impl Lines {
    fn new(pipe: Option<OwnedFd>) -> Self {
        Self {
            pipe,
            partial: Vec::new(),
        }
    }

    /// Takes what is there now; at the end also an unfinished line.
    fn take(&mut self, end: bool, mut line: impl FnMut(&str)) {
        let mut buffer = [0; 16 * 1024];
        while let Some(pipe) = &self.pipe {
            let mut watched = [PollFd::new(pipe, PollFlags::IN)];
            let now = Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            };
            if !matches!(poll(&mut watched, Some(&now)), Ok(1..)) {
                break;
            }
            let Ok(file) = pipe.as_fd().try_clone_to_owned() else {
                break;
            };
            match std::fs::File::from(file).read(&mut buffer) {
                Ok(0) | Err(_) => self.pipe = None,
                Ok(count) => self.partial.extend_from_slice(&buffer[..count]),
            }
            while let Some(length) = self.partial.iter().position(|&byte| byte == b'\n') {
                let text: Vec<u8> = self.partial.drain(..=length).collect();
                line(String::from_utf8_lossy(&text[..length]).trim_end_matches('\r'));
            }
        }
        if end && !self.partial.is_empty() {
            line(&String::from_utf8_lossy(&std::mem::take(&mut self.partial)));
        }
    }
}
