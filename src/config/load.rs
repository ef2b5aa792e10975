//! From a pipeline file and the command line to a [`PipelineSpec`].

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::diagnostic::{Diagnostic, Diagnostics, Problems};
use super::environment::{Environment, substitute};
use super::matrix::Written;
use super::pipeline::{self, PipelineSpec};
use super::source::{Sources, Span};
use super::yaml::{self, Entry, Kind, Yaml};
use super::{fields, overrides, suggest};

/// Which pipeline, seen how.
#[derive(Debug, Clone, Default)]
pub struct Request {
    pub path: PathBuf,
    pub profile: Option<String>,
    /// `key=value` pairs of `--set`, in order; later ones win.
    pub set: Vec<String>,
    /// `key=value,value` of `--matrix`.
    pub matrix: Vec<String>,
}

/// Reads a pipeline. Problems that leave something to go on with are kept in the spec; an error is one that does not.
pub fn load(request: &Request, environment: Environment) -> Result<PipelineSpec, Diagnostics> {
    let path = &request.path;
    let text =
        read_text(path).map_err(|problem| Diagnostics::single(name_others(problem, path)))?;
    let mut sources = Sources::default();
    let source = sources.add(path.display().to_string(), text.clone());
    let mut problems = Problems::new();
    let Some(mut tree) = yaml::parse(&text, source, &mut problems) else {
        if problems.is_empty() {
            problems.push(empty(source));
        }
        return Err(Diagnostics::new(sources, problems));
    };
    let mut matrix = lay_over(request, &mut tree, &mut sources, &mut problems);
    substitute(&mut tree, environment, &mut problems);
    matrix.substitute(environment, &mut problems);
    if tree.is_null() {
        problems.push(empty(source));
    }
    let parts = pipeline::read(&tree, &mut problems).filter(|_| !tree.is_null());
    let Some(parts) = parts else {
        return Err(Diagnostics::new(sources, problems));
    };
    let remarks = matrix.remarks();
    let matrix = matrix.resolve(&tree, &parts, &mut problems);
    let stem = path
        .file_stem()
        .map(|stem| stem.to_string_lossy().into_owned())
        .unwrap_or_default();
    Ok(PipelineSpec {
        path: path.clone(),
        root: project_root(path),
        name: parts.name.unwrap_or(stem),
        description: parts.description,
        seed: parts.seed,
        profile: request.profile.clone(),
        models: parts.models,
        stages: parts.stages,
        show: parts.show,
        matrix,
        remarks,
        cache: parts.cache,
        tracking: parts.tracking,
        executor: parts.executor,
        text,
        sources,
        problems,
    })
}

/// Checks all profiles, lays the chosen one over the tree, then what the command line says; takes `profiles` and `matrix` out of
/// the tree. A value wins over a list of an earlier layer, a list over a value.
fn lay_over(
    request: &Request,
    tree: &mut Yaml,
    sources: &mut Sources,
    problems: &mut Problems,
) -> Written {
    let mut take = |key: &str| match &mut tree.kind {
        Kind::Map(entries) => entries
            .iter()
            .position(|entry| entry.key == key)
            .map(|index| entries.remove(index)),
        _ => None,
    };
    let (profiles, own_matrix) = (take("profiles"), take("matrix"));
    let mut matrix = Written::default();
    if let Some(entry) = own_matrix {
        matrix.lay_over(&entry, tree, problems);
    }
    let profiles = profiles
        .as_ref()
        .and_then(|entry| fields::entries(&entry.value, "`profiles`", problems))
        .unwrap_or(&[]);
    for profile in profiles {
        let chosen = request.profile.as_deref() == Some(profile.key.as_str());
        let Some(entries) = fields::entries(&profile.value, "a profile", problems) else {
            continue;
        };
        let (lists, values): (Vec<Entry>, Vec<Entry>) = entries
            .iter()
            .cloned()
            .partition(|entry| entry.key == "matrix");
        overrides::lay_over(tree, &values, chosen, problems);
        // Another profile's is looked at for mistakes only.
        let mut unused = Written::default();
        let laid_over = if chosen { &mut matrix } else { &mut unused };
        laid_over.pin(&values, &format!("the profile `{}`", profile.key), problems);
        for entry in &lists {
            laid_over.lay_over(entry, tree, problems);
        }
    }
    if let Some(name) = request
        .profile
        .as_deref()
        .filter(|name| !profiles.iter().any(|profile| profile.key == *name))
    {
        let names = || profiles.iter().map(|profile| profile.key.as_str());
        let source = sources.add("--profile", name);
        let span = Span {
            source,
            start: 0,
            end: name.chars().count() as u32,
        };
        let help = if profiles.is_empty() {
            "this pipeline has no profiles".to_owned()
        } else {
            format!("the profiles are {}", suggest::list(names()))
        };
        problems.push(
            Diagnostic::new(span, format!("there is no profile `{name}`"))
                .guess(suggest::closest(name, names()))
                .help(help),
        );
    }
    for text in &request.matrix {
        let source = sources.add("--matrix", text.clone());
        if let Some(entry) = overrides::parse_matrix(text, source, problems) {
            matrix.add_axes(&entry, tree, problems);
        }
    }
    for text in &request.set {
        let source = sources.add("--set", text.clone());
        if let Some(entry) = overrides::parse_set(text, source, problems) {
            let entry = std::slice::from_ref(&entry);
            overrides::lay_over(tree, entry, true, problems);
            matrix.pin(entry, "`--set`", problems);
        }
    }
    matrix
}

/// The closest folder upwards from the pipeline with a `stages/` folder in it; else the parent of the folder `pipelines` it
/// lies in; else its own folder.
pub fn project_root(pipeline: &Path) -> PathBuf {
    let absolute = std::path::absolute(pipeline).unwrap_or_else(|_| pipeline.to_owned());
    let folder = absolute.parent().unwrap_or(&absolute);
    if let Some(root) = folder
        .ancestors()
        .find(|folder| folder.join("stages").is_dir())
    {
        return root.to_owned();
    }
    match folder.parent() {
        Some(parent) if folder.file_name().is_some_and(|name| name == "pipelines") => {
            parent.to_owned()
        }
        _ => folder.to_owned(),
    }
}

/// A file as text, without byte-order mark; the problem says what is the matter with the file.
pub fn read_text(path: &Path) -> Result<String, Diagnostic> {
    let shown = path.display();
    let bytes = std::fs::read(path).map_err(|error| match error.kind() {
        ErrorKind::NotFound => {
            Diagnostic::without_place(format!("there is no file `{shown}`")).help("check the path")
        }
        ErrorKind::IsADirectory => {
            Diagnostic::without_place(format!("`{shown}` is a folder, not a file"))
                .help("name a file in it")
        }
        _ => Diagnostic::without_place(format!("cannot read `{shown}`: {error}"))
            .help("check the permissions of the file"),
    })?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let good = error.utf8_error().valid_up_to();
        let line = error.as_bytes()[..good]
            .iter()
            .filter(|byte| **byte == b'\n')
            .count()
            + 1;
        let message = format!(
            "`{shown}` is not UTF-8 text: byte {} on line {line} is invalid",
            good + 1
        );
        Diagnostic::without_place(message).help(format!(
            "convert it, for example with `iconv -t utf-8 {shown}`"
        ))
    })?;
    Ok(text
        .strip_prefix('\u{feff}')
        .map(str::to_owned)
        .unwrap_or(text))
}

/// Adds which pipeline may be meant to the problem of a file that is none.
fn name_others(mut problem: Diagnostic, path: &Path) -> Diagnostic {
    if path.is_file() {
        return problem;
    }
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let folder = if path.is_dir() { path } else { folder };
    let mut found: Vec<PathBuf> = [folder.to_owned(), folder.join("pipelines")]
        .iter()
        .flat_map(|folder| yaml_files(folder))
        .collect();
    found.sort();
    let found: Vec<String> = found
        .iter()
        .map(|path| path.strip_prefix(".").unwrap_or(path).display().to_string())
        .collect();
    if !found.is_empty() {
        problem.help = Some(format!(
            "pipelines nearby: {}",
            suggest::list(found.iter().map(String::as_str))
        ));
    }
    problem
}

fn yaml_files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let paths = entries.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    paths
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "yaml" || extension == "yml")
        })
        .collect()
}

fn empty(source: u32) -> Diagnostic {
    let problem = Diagnostic::new(Span::start_of(source), "the file is empty");
    problem.help("a pipeline has at least `stages:` with one stage in it")
}
