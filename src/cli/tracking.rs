//! Tracking of a run: settings from the environment, what is said at its start and end.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::error::{CliError, Exit};
use super::folders::environment;
use super::output::Output;
use crate::cache::Cache;
use crate::config::{ArtifactKind, TrackingSpec};
use crate::engine::{EventKind, NodeOutcome, NodeState, Plan, RunState};
use crate::graph::{Graph, base_name};
use crate::runs::VariantOf;
use crate::tracking::{
    Ending, Mode, NewTracking, Pace, Report, Settings, SettingsError, Sources, Tracker,
};
use crate::ui::{Style, count, line, plural};

/// How PEFT describes an adapter; small, unlike the adapter.
const ADAPTER_CONFIG: &str = "adapter_config.json";

/// Works with where settings come from: the environment, `tracking:` and the netrc file.
pub fn with_sources<T>(
    spec: Option<&TrackingSpec>,
    pipeline: &str,
    work: impl FnOnce(&Sources) -> T,
) -> T {
    work(&Sources {
        spec,
        pipeline,
        variable: &environment,
        netrc: &netrc,
    })
}

/// `None` where nothing is to be tracked. Offline, the journal is kept all the same.
pub fn settings(
    spec: Option<&TrackingSpec>,
    pipeline: &str,
    offline: bool,
) -> Result<Option<Settings>, CliError> {
    let Some(mut settings) = with_sources(spec, pipeline, |sources| sources.resolve())? else {
        return Ok(None);
    };
    if offline {
        settings.mode = Mode::Offline;
    }
    Ok(Some(settings))
}

/// Says once where nothing can be sent.
pub fn warn(settings: &Settings, output: &Output) {
    if settings.mode == Mode::Online && settings.key.is_none() {
        output.warning(&format!(
            "tracking: no API key for {} in `WANDB_API_KEY` or ~/.netrc, so nothing is sent for now",
            settings.base_url.host_str().unwrap_or_default()
        ));
    }
}

/// The settings of one variant of a matrix: a run of its own in a group, called by what makes it.
pub fn of_variant(settings: &Settings, variant: &VariantOf) -> Settings {
    let own = &variant.label;
    Settings {
        name: Some(match &settings.name {
            Some(name) => format!("{name} {own}"),
            None => own.clone(),
        }),
        group: Some(
            settings
                .group
                .clone()
                .unwrap_or_else(|| variant.group.clone()),
        ),
        job_type: Some(
            settings
                .job_type
                .clone()
                .unwrap_or_else(|| "variant".to_owned()),
        ),
        ..settings.clone()
    }
}

/// A run that cannot be tracked is said so, and goes on without; one without a key is only kept. `plan` is the run's own part.
pub fn start(
    settings: &Settings,
    graph: &Graph,
    plan: &Plan,
    variant: Option<&VariantOf>,
    runs: &Path,
    id: &str,
    output: &Output,
) -> Option<Tracker> {
    let nodes: Vec<_> = plan
        .nodes_of(graph)
        .map(|node| (node.base().to_owned(), node.op.clone()))
        .collect();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let new = NewTracking {
        settings,
        runs,
        id,
        request: plan.request(graph),
        config: config(graph, plan, variant),
        nodes: &nodes,
        arguments: &arguments,
        describe: plain_line,
        pace: Pace::default(),
    };
    match Tracker::start(&new) {
        Ok(tracker) => {
            if let Some(earlier) = tracker.continues() {
                output.tell(&format!(
                    "tracking: goes on with run {earlier}, which did not finish"
                ));
            }
            add_file(
                &tracker,
                "pipeline.yaml",
                &runs.join(id).join("pipeline.yaml"),
                output,
            );
            Some(tracker)
        }
        Err(error) => {
            output.warning(&format!("this run is not tracked: {error}"));
            None
        }
    }
}

/// Adds the files that are there now, sends the rest, and says how that went.
pub fn finish(
    tracker: &Tracker,
    state: RunState,
    nodes: &[&NodeOutcome],
    cache: &Cache,
    record: &Path,
    output: &Output,
) {
    add_file(tracker, "report.html", &record.join("report.html"), output);
    for node in nodes {
        for artifact in node.outputs.values() {
            if artifact.kind == ArtifactKind::Files {
                let from = cache.object_path(&artifact.digest).join(ADAPTER_CONFIG);
                add_file(
                    tracker,
                    &format!("{}/{ADAPTER_CONFIG}", base_name(&node.name)),
                    &from,
                    output,
                );
            }
        }
    }
    let report = tracker.finish(match state {
        RunState::Finished => 0,
        RunState::Failed | RunState::Running => 1,
        RunState::Interrupted => 130,
    });
    tell(&report, output);
}

fn tell(report: &Report, output: &Output) {
    if let Some(problem) = &report.problem {
        output.warning(problem);
    }
    for (name, why) in &report.left_out {
        output.warning(&format!("tracking: `{name}` was not taken: {why}"));
    }
    let left = report.rows - report.acknowledged;
    let left = match left {
        0 => "the end of the run is not sent".to_owned(),
        left => format!(
            "{} of {} rows are not sent",
            count(left),
            count(report.rows)
        ),
    };
    match &report.ending {
        Some(Ending::Done) => {
            output.tell(&format!("tracked: {}", report.page.as_deref().unwrap_or_default()));
        }
        None => output.tell(&format!(
            "tracked offline: {}; `flow sync` sends them, `flow export --wandb` writes them for `wandb sync`",
            plural(report.rows, "row")
        )),
        Some(Ending::Later(why)) => output.warning(&format!(
            "tracking: {why}; {left} and wait in the journal: `flow sync` sends what is left"
        )),
        Some(Ending::Refused(why)) => output.warning(&format!(
            "tracking: {why}; {left} and wait in the journal: `flow sync` tries again once that is mended"
        )),
    }
}

/// A file that is not there is no file of the run.
fn add_file(tracker: &Tracker, name: &str, from: &Path, output: &Output) {
    if !from.is_file() {
        return;
    }
    if let Err(error) = tracker.add_file(name, from) {
        output.warning(&format!("tracking: `{name}` is left out: {error}"));
    }
}

/// What the run is, by key: the pipeline, the params of every node, its models and data, fingerprints as far as known.
fn config(graph: &Graph, plan: &Plan, variant: Option<&VariantOf>) -> Map<String, Value> {
    let (mut params, mut models, mut data) = (Map::new(), Map::new(), Map::new());
    for (node, manifest) in plan.manifests(graph) {
        // Params are kept as JSON text.
        let value = |text: &String| serde_json::from_str(text).unwrap_or_else(|_| json!(text));
        let own: Map<_, _> = manifest
            .params
            .iter()
            .map(|(name, text)| (name.clone(), value(text)))
            .collect();
        if !own.is_empty() {
            params.insert(node.base().to_owned(), Value::Object(own));
        }
        for (digests, group) in [
            (&manifest.models, &mut models),
            (&manifest.paths, &mut data),
        ] {
            let named = digests
                .iter()
                .map(|(name, digest)| (format!("{}.{name}", node.base()), json!(digest)));
            group.extend(named);
        }
    }
    let known: BTreeMap<_, _> = plan
        .nodes
        .iter()
        .filter_map(|node| match &node.state {
            NodeState::Cached { fingerprint, .. } => {
                Some((base_name(&node.name), fingerprint.to_string()))
            }
            _ => None,
        })
        .collect();
    let entries = [
        ("pipeline", json!(graph.name)),
        ("profile", json!(graph.profile)),
        ("seed", json!(graph.seed)),
        ("flow_version", json!(env!("CARGO_PKG_VERSION"))),
        ("params", Value::Object(params)),
        ("models", Value::Object(models)),
        ("data", Value::Object(data)),
        ("fingerprints", json!(known)),
    ];
    // By key, as the pipeline writes them: what people filter and group by.
    let own = variant.map(|variant| ("matrix", json!(Map::from_iter(variant.params.clone()))));
    entries
        .into_iter()
        .chain(own)
        .map(|(key, value)| (key.to_owned(), value))
        .collect()
}

fn plain_line(event: &EventKind) -> Option<String> {
    line(Style::new(false), event)
}

/// The text of `NETRC`, else `~/.netrc`.
fn netrc() -> Option<String> {
    let path = environment("NETRC").map(PathBuf::from);
    let path = path.or_else(|| Some(Path::new(&environment("HOME")?).join(".netrc")))?;
    std::fs::read_to_string(path).ok()
}

impl From<SettingsError> for CliError {
    fn from(error: SettingsError) -> Self {
        Self::Message {
            message: error.to_string(),
            help: Some(error.help().to_owned()),
            exit: Exit::Wrong,
        }
    }
}
