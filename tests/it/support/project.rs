//! A project in a folder of its own: write files, run `flow`, edit, run again, see which nodes ran.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

/// Lives as long as the test; the folder goes with it.
pub struct Project {
    folder: TempDir,
    variables: BTreeMap<String, String>,
}

/// What a command said and how it ended.
#[derive(Debug)]
pub struct Outcome {
    pub stdout: String,
    pub stderr: String,
    pub code: i32,
}

impl Project {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        Self {
            folder,
            variables: BTreeMap::new(),
        }
    }

    /// A project with one pipeline, `pipelines/p.yaml`.
    pub fn with_pipeline(text: &str) -> Self {
        Self::new().file("pipelines/p.yaml", text)
    }

    pub fn file(self, path: &str, text: &str) -> Self {
        self.write(path, text);
        self
    }

    /// Sets an environment variable for every command from now on.
    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.variables.insert(name.to_owned(), value.to_owned());
        self
    }

    pub fn write(&self, path: &str, bytes: impl AsRef<[u8]>) {
        let path = self.path(path);
        std::fs::create_dir_all(path.parent().expect("files lie in the project"))
            .expect("a folder can be made");
        std::fs::write(path, bytes).expect("a file can be written");
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    /// The program with the project as working folder and none of the developer's own settings.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flow"));
        for name in [
            "AWS_ACCESS_KEY_ID",
            "AWS_ENDPOINT_URL",
            "AWS_SECRET_ACCESS_KEY",
            "AWS_SESSION_TOKEN",
            "FLOW_CACHE",
            "FLOW_CACHE_REMOTE",
            "FLOW_RUNS",
            "FLOW_API_KEY",
            "FLOW_LOG",
            "HF_HOME",
            "HF_ENDPOINT",
            "CUDA_VISIBLE_DEVICES",
            "NETRC",
            "WANDB_API_KEY",
            "WANDB_BASE_URL",
            "WANDB_ENTITY",
            "WANDB_MODE",
            "WANDB_JOB_TYPE",
            "WANDB_NAME",
            "WANDB_PROJECT",
            "WANDB_RUN_GROUP",
        ] {
            command.env_remove(name);
        }
        command
            .args(arguments)
            .current_dir(self.folder.path())
            .stdin(Stdio::null());
        command
            .env("FLOW_HOME", self.path("home"))
            // No API keys of the developer's.
            .env("HOME", self.path("home"))
            .env("NO_COLOR", "1")
            .envs(&self.variables);
        command
    }

    pub fn flow(&self, arguments: &[&str]) -> Outcome {
        let output = self
            .command(arguments)
            .output()
            .expect("flow can be started");
        self.outcome(output)
    }

    /// Like [`Project::flow`] for a process started with [`Project::command`].
    pub fn outcome(&self, output: std::process::Output) -> Outcome {
        let text = |bytes: Vec<u8>| {
            self.without_folder(&String::from_utf8(bytes).expect("flow speaks UTF-8"))
        };
        Outcome {
            stdout: text(output.stdout),
            stderr: text(output.stderr),
            code: output.status.code().unwrap_or(-1),
        }
    }

    /// Runs `pipelines/p.yaml`, which must succeed.
    pub fn run(&self) -> Outcome {
        self.flow(&["run", "pipelines/p.yaml"]).success()
    }

    /// The names of the nodes that ran in the latest run, sorted.
    pub fn ran(&self) -> Vec<String> {
        self.with_status("ran")
    }

    pub fn with_status(&self, status: &str) -> Vec<String> {
        let nodes = self.latest()["nodes"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let names = nodes
            .iter()
            .filter(|node| node["status"] == status)
            .map(|node| node["name"].as_str().unwrap_or_default().to_owned());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }

    /// The record of the latest run.
    pub fn latest(&self) -> Value {
        self.flow(&["show", "latest", "--json"]).success().json()
    }

    /// The rows that a node gave in the latest run.
    pub fn rows(&self, output: &str) -> Value {
        self.flow(&["data", "latest", output, "--json"])
            .success()
            .json()
    }

    /// What a query over the results of the latest run gives.
    pub fn query(&self, sql: &str) -> Vec<Value> {
        let rows = self
            .flow(&["data", "latest", "--sql", sql, "--json"])
            .success()
            .json();
        rows.as_array().cloned().unwrap_or_default()
    }

    /// Holds the database as a run does that commits just now.
    pub fn hold_cache(&self) -> duckdb::Connection {
        duckdb::Connection::open(self.path("cache/flow.duckdb"))
            .expect("nobody has the database open")
    }

    fn without_folder(&self, text: &str) -> String {
        let real = self.folder.path().canonicalize().unwrap_or_default();
        let cut = |text: String, folder: &Path| {
            text.replace(&format!("{}/", folder.display()), "")
                .replace(&folder.display().to_string(), "[project]")
        };
        cut(cut(text.to_owned(), &real), self.folder.path())
    }
}

impl Outcome {
    #[track_caller]
    pub fn success(self) -> Self {
        self.code(0)
    }

    #[track_caller]
    pub fn code(self, code: i32) -> Self {
        assert_eq!(
            self.code, code,
            "stdout:\n{}\nstderr:\n{}",
            self.stdout, self.stderr
        );
        self
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("{error} in:\n{}", self.stdout))
    }

    /// Standard error without ids and times, and without blanks at the ends of lines.
    pub fn messages(&self) -> String {
        without_times(&self.stderr)
    }

    /// Standard output, likewise.
    pub fn results(&self) -> String {
        without_times(&self.stdout)
    }
}

/// The text of a JSON string; of anything else none.
pub fn text_of(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// Replaces run ids (`20261124-013906-72b9`) and durations (`12.3 s`), which differ from run to run.
fn without_times(text: &str) -> String {
    let line = |line: &str| {
        let mut words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        for place in 0..words.len() {
            let bare = |word: &str| {
                word.trim_matches(|character: char| "()`,;:".contains(character))
                    .to_owned()
            };
            let word = bare(&words[place]);
            // The run of a variant has the variant's number behind the matrix's id.
            let id = word.get(..20).unwrap_or_default().to_owned();
            let number = word.get(20..).unwrap_or_default();
            if id.starts_with("20")
                && id.matches('-').count() == 2
                && (number.is_empty() || number.starts_with('-'))
            {
                words[place] = words[place].replace(&id, "[run]");
            }
            if word.parse::<f64>().is_ok()
                && words
                    .get(place + 1)
                    .is_some_and(|unit| ["ms", "s"].contains(&bare(unit).as_str()))
            {
                words[place] = "[time]".to_owned();
                words[place + 1] = words[place + 1].trim_start_matches(['m', 's']).to_owned();
                let unit = words.remove(place + 1);
                words[place].push_str(&unit);
                words.push(String::new());
            }
        }
        words.join(" ").trim_end().to_owned()
    };
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}
