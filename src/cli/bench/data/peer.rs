//! DuckDB's own Python package on the SQL of the same nodes: what the stages cost without flow.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::cli::error::CliError;
use crate::cli::folders::environment;
use crate::config::{Request, load};
use crate::graph::{Node, compile};
use crate::ops::Catalog;

const SCRIPT: &str = include_str!("peer.py");

pub struct Peer {
    python: PathBuf,
}

/// What DuckDB alone took.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Alone {
    pub version: String,
    pub nodes: Vec<AloneCost>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AloneCost {
    pub node: String,
    pub seconds: f64,
    /// Bytes.
    pub peak: Option<u64>,
}

/// A Python with DuckDB, or why there is none.
pub fn find(python: &Path) -> Result<Peer, String> {
    let tried = Command::new(python)
        .args(["-c", "import duckdb"])
        .output()
        .map_err(|error| format!("`{}` cannot be started: {error}", python.display()))?;
    if tried.status.success() {
        return Ok(Peer {
            python: python.to_owned(),
        });
    }
    Err(format!(
        "`{}` has no package `duckdb` (name another with `--python`)",
        python.display()
    ))
}

impl Peer {
    /// Runs the SQL of the nodes of `pipeline` in a database in `folder`, with DuckDB's own settings.
    pub fn run(
        &self,
        folder: &Path,
        pipeline: &Path,
        catalog: &Catalog,
    ) -> Result<Alone, CliError> {
        let request = Request {
            path: pipeline.to_owned(),
            ..Request::default()
        };
        let graph = compile(&load(&request, &environment)?, catalog)?;
        let steps: Vec<Value> = graph
            .order
            .iter()
            .map(|&index| step(&graph.dag[index]))
            .collect();
        let asked = json!({"database": folder.join("alone.duckdb"), "steps": steps});
        let mut child = Command::new(&self.python)
            .args(["-c", SCRIPT])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(asked.to_string().as_bytes())?;
        }
        let ended = child.wait_with_output()?;
        if !ended.status.success() {
            return Err(CliError::failed(
                format!("DuckDB alone ended with {}", ended.status),
                Some("see its message above, or leave it out with `--python none`".to_owned()),
            ));
        }
        Ok(serde_json::from_slice(&ended.stdout).map_err(std::io::Error::from)?)
    }
}

/// A node as the script takes it; a source is the plain load of its file.
fn step(node: &Node) -> Value {
    let views: serde_json::Map<String, Value> = node
        .inputs
        .iter()
        .map(|input| (input.port.clone(), Value::from(input.node.as_str())))
        .collect();
    let sql = match node.paths.get("path") {
        Some(data) => format!(
            "select * from read_parquet('{}')",
            data.path.to_string_lossy().replace('\'', "''")
        ),
        None => node
            .files
            .get("file")
            .map(|file| file.text.as_str())
            .or_else(|| node.params.get("query").and_then(Value::as_str))
            .unwrap_or_default()
            .to_owned(),
    };
    json!({
        "node": node.name,
        "views": views,
        "sql": sql,
        "params": node.params.get("params").cloned().unwrap_or_else(|| json!({})),
    })
}
