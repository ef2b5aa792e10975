//! A pipeline file, read and checked for form. What its stages mean is worked out by `graph::compile`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::cache::CacheSpec;
use super::call::{Call, InputRef, check_name};
use super::diagnostic::{Diagnostic, Problems};
use super::executor::ExecutorSpec;
use super::fields::{self, Fields, expected};
use super::matrix::Matrix;
use super::source::{Sources, Span};
use super::tracking::TrackingSpec;
use super::yaml::{Entry, Kind, Yaml};
use super::{ModelSpec, has_credentials, suggest};

/// What the user wrote, with the profile and `--set` laid over it.
#[derive(Debug, Clone)]
pub struct PipelineSpec {
    /// The pipeline file as it was named.
    pub path: PathBuf,
    /// The project folder; see [`super::project_root`].
    pub root: PathBuf,
    pub name: String,
    pub description: String,
    pub seed: u64,
    pub profile: Option<String>,
    pub models: BTreeMap<String, Model>,
    /// In the order of the file.
    pub stages: Vec<Call>,
    /// `show: [stage.output, …]`: tables to print at the end of a run, beside those that stages show by themselves.
    pub show: Vec<InputRef>,
    /// The variants that are asked for.
    pub matrix: Option<Matrix>,
    /// What the user should know of how profile, matrix and command line came together.
    pub remarks: Vec<String>,
    pub cache: CacheSpec,
    pub tracking: Option<TrackingSpec>,
    pub executor: Option<ExecutorSpec>,
    /// The text the pipeline was read from, kept with each run.
    pub text: String,
    pub sources: Sources,
    /// Problems found while reading; `graph::compile` reports them together with its own.
    pub problems: Problems,
}

#[derive(Debug, Clone)]
pub struct Model {
    pub spec: ModelSpec,
    pub span: Span,
}

/// Names that profiles and `--set` use for something else.
const RESERVED: [&str; 9] = [
    "models", "seed", "show", "cache", "tracking", "executor", "stages", "profiles", "matrix",
];

/// The parts of a [`PipelineSpec`] that come from the YAML tree.
pub struct Parts {
    pub name: Option<String>,
    pub description: String,
    pub seed: u64,
    pub models: BTreeMap<String, Model>,
    pub stages: Vec<Call>,
    pub show: Vec<InputRef>,
    pub cache: CacheSpec,
    pub tracking: Option<TrackingSpec>,
    pub executor: Option<ExecutorSpec>,
}

pub fn read(yaml: &Yaml, problems: &mut Problems) -> Option<Parts> {
    let mut fields = Fields::of(
        yaml,
        "a pipeline",
        Span::start_of(yaml.span.source),
        problems,
    )?;
    let name = fields.text("name", problems);
    let description = fields.text("description", problems).unwrap_or_default();
    let seed = fields
        .get("seed")
        .map_or(0, |yaml| read_seed(yaml, problems));
    let models = fields
        .get("models")
        .and_then(|yaml| fields::entries(yaml, "`models`", problems))
        .unwrap_or(&[]);
    let models = models
        .iter()
        .filter_map(|entry| Some((entry.key.clone(), read_model(entry, problems)?)))
        .collect();
    let stages = fields.require("stages", problems);
    if let Some(yaml) = stages.filter(|yaml| yaml.kind == Kind::Map(Vec::new())) {
        let problem = Diagnostic::new(yaml.span, "the pipeline has no stages");
        problems.push(
            problem.help("add one, such as `rows: { uses: source, with: { path: rows.csv } }`"),
        );
    }
    let stages = stages
        .and_then(|yaml| fields::entries(yaml, "`stages`", problems))
        .unwrap_or(&[]);
    for stage in stages
        .iter()
        .filter(|stage| RESERVED.contains(&stage.key.as_str()))
    {
        let message = format!("`{}` cannot be the name of a stage", stage.key);
        problems.push(Diagnostic::new(stage.key_span, message).help(
            "profiles and `--set` use this word for a part of the pipeline; name it otherwise",
        ));
    }
    let stages = stages
        .iter()
        .filter_map(|entry| Call::read_stage(entry, problems))
        .collect();
    let show = fields
        .get("show")
        .map(|yaml| read_show(yaml, problems))
        .unwrap_or_default();
    // Profiles were laid over before, and the matrix was taken out; here only their place among the keys counts.
    fields.entry("profiles");
    fields.entry("matrix");
    let cache = fields
        .entry("cache")
        .and_then(|entry| CacheSpec::read(entry, problems))
        .unwrap_or_default();
    let tracking = fields
        .entry("tracking")
        .and_then(|entry| TrackingSpec::read(entry, problems));
    let executor = fields
        .entry("executor")
        .and_then(|entry| ExecutorSpec::read(entry, problems));
    fields.finish(problems);
    Some(Parts {
        name,
        description,
        seed,
        models,
        stages,
        show,
        cache,
        tracking,
        executor,
    })
}

pub(super) fn read_seed(yaml: &Yaml, problems: &mut Problems) -> u64 {
    match &fields::read_env(yaml).kind {
        Kind::Number(number) if number.is_u64() => number.as_u64().unwrap_or_default(),
        _ => {
            problems.push(
                expected(yaml, "seed", "a whole number of 0 or more")
                    .help("for example `seed: 3407`"),
            );
            0
        }
    }
}

fn read_show(yaml: &Yaml, problems: &mut Problems) -> Vec<InputRef> {
    let Kind::List(items) = &yaml.kind else {
        problems.push(
            expected(yaml, "show", "a list of outputs")
                .help("for example `show: [evaluate.summary]`"),
        );
        return Vec::new();
    };
    let reference = |item: &Yaml| {
        Some(InputRef {
            port: "show".to_owned(),
            port_span: item.span,
            target: fields::text(item, "show", problems)?,
            span: item.span,
        })
    };
    items.iter().filter_map(reference).collect()
}

pub(super) fn read_model(entry: &Entry, problems: &mut Problems) -> Option<Model> {
    check_name(entry, "a model", problems);
    let before = problems.len();
    let mut fields = Fields::of(&entry.value, "a model", entry.key_span, problems)?;
    let spec = ModelSpec {
        path: fields.text("path", problems),
        hf: fields.text("hf", problems),
        revision: fields.text("revision", problems),
        url: fields.text("url", problems),
        name: fields.text("name", problems),
        api_key_env: fields.text("api_key_env", problems),
    };
    fields.finish(problems);
    let places = [("path", &spec.path), ("hf", &spec.hf), ("url", &spec.url)];
    let given: Vec<_> = places
        .iter()
        .filter(|place| place.1.is_some())
        .map(|place| place.0)
        .collect();
    if given.len() != 1 && problems.len() == before {
        let found = if given.is_empty() {
            "none of them".to_owned()
        } else {
            suggest::list(given.iter().copied())
        };
        let message = format!(
            "a model needs exactly one of `path`, `hf` and `url`; `{}` has {found}",
            entry.key
        );
        problems.push(
            Diagnostic::new(entry.key_span, message)
                .help("keep the one place the model comes from"),
        );
    }
    if let Some(url) = entry
        .value
        .entry("url")
        .filter(|_| spec.url.as_deref().is_some_and(has_credentials))
    {
        let message = format!(
            "the `url` of the model `{}` holds a user or a password",
            entry.key
        );
        problems.push(Diagnostic::new(url.value.span, message).help(
            "it would end up in the records of runs: put the key into an environment variable and name that with `api_key_env`",
        ));
    }
    let only_with = [
        ("revision", &spec.revision, &spec.hf, "hf"),
        ("name", &spec.name, &spec.url, "url"),
        ("api_key_env", &spec.api_key_env, &spec.url, "url"),
    ];
    for (key, value, needs, needed) in only_with {
        if value.is_some() && needs.is_none() {
            let span = entry
                .value
                .entry(key)
                .map_or(entry.key_span, |entry| entry.key_span);
            problems.push(
                Diagnostic::new(span, format!("`{key}` of a model goes with `{needed}`"))
                    .help(format!("remove it, or give `{needed}`")),
            );
        }
    }
    Some(Model {
        spec,
        span: entry.key_span,
    })
}
