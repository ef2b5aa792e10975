//! The folders flow works in, as the environment and the pipeline say.

use std::path::{Path, PathBuf};

use crate::config::PipelineSpec;

#[derive(Debug, Clone)]
pub struct Folders {
    /// Downloads and models shared by all projects.
    pub home: PathBuf,
    pub root: PathBuf,
    pub cache: PathBuf,
    pub runs: PathBuf,
    /// The address of the shared cache, unchecked where it comes from the environment.
    pub remote: Option<String>,
}

impl Folders {
    /// Those of a pipeline: `FLOW_CACHE` and `FLOW_RUNS` win over the pipeline's `cache:`, which wins over the project's own.
    pub fn of_pipeline(spec: &PipelineSpec) -> Self {
        Self {
            remote: remote().or_else(|| spec.cache.remote.clone()),
            ..Self::new(&spec.root, spec.cache.path.as_deref())
        }
    }

    /// Those of the project the working folder lies in, for commands without a pipeline.
    pub fn of_working_folder() -> Self {
        let here = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("."));
        let nearest = |parts: &[&str]| {
            let is_project = |folder: &&Path| parts.iter().any(|part| folder.join(part).is_dir());
            here.ancestors().find(is_project)
        };
        // As the root of a pipeline is found: by its stages before anything else.
        let root = nearest(&["stages"]).or_else(|| nearest(&["runs", "pipelines"]));
        Self::new(root.unwrap_or(&here), None)
    }

    fn new(root: &Path, cache: Option<&Path>) -> Self {
        let set = |name: &str| {
            environment(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        let absolute = |path: PathBuf| std::path::absolute(&path).unwrap_or(path);
        Self {
            home: home(),
            root: root.to_owned(),
            cache: set("FLOW_CACHE")
                .map(absolute)
                .unwrap_or_else(|| root.join(cache.unwrap_or(Path::new("cache")))),
            runs: set("FLOW_RUNS")
                .map(absolute)
                .unwrap_or_else(|| root.join("runs")),
            remote: remote(),
        }
    }
}

/// An environment variable; `FLOW_HOME` always has a value, so that pipelines can name it.
pub fn environment(name: &str) -> Option<String> {
    match name {
        "FLOW_HOME" => Some(home().display().to_string()),
        other => std::env::var(other).ok(),
    }
}

/// `FLOW_CACHE_REMOTE`, which wins over a pipeline's `cache.remote`.
fn remote() -> Option<String> {
    environment("FLOW_CACHE_REMOTE").filter(|value| !value.is_empty())
}

fn home() -> PathBuf {
    let set = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    set("FLOW_HOME").unwrap_or_else(|| set("HOME").unwrap_or_default().join(".cache/flow"))
}
