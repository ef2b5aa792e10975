//! The `executor:` section: where nodes run whose op asks for a machine of its own, and what they get there.

use super::diagnostic::{Diagnostic, Problems};
use super::fields::{self, Fields, expected};
use super::job::{self, JobSpec};
use super::suggest;
use super::yaml::{Entry, Kind};

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecutorSpec {
    /// One of [`EXECUTORS`], where `--executor` does not say.
    pub uses: Option<String>,
    pub slurm: SlurmSpec,
}

/// What every Slurm job gets; a stage's `resources:` win.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SlurmSpec {
    pub job: JobSpec,
    pub account: Option<String>,
    pub qos: Option<String>,
    /// Jobs in the queue at a time.
    pub max_jobs: Option<u32>,
    /// Further long options of `sbatch`; one without a value is a flag.
    pub options: Vec<(String, Option<String>)>,
}

pub const EXECUTORS: [&str; 2] = ["local", "slurm"];

/// Options of `sbatch` that are set from other keys, and the key; those without one are flow's own.
const TAKEN: [(&str, &str); 26] = [
    ("partition", "partition"),
    ("account", "account"),
    ("qos", "qos"),
    ("time", "time"),
    ("mem", "memory"),
    ("cpus-per-task", "cpus"),
    ("gpus-per-node", "gpus"),
    ("array", ""),
    ("chdir", ""),
    ("comment", ""),
    ("dependency", ""),
    ("error", ""),
    ("export", ""),
    ("export-file", ""),
    ("input", ""),
    ("job-name", ""),
    ("nodes", ""),
    ("no-requeue", ""),
    ("ntasks", ""),
    ("open-mode", ""),
    ("output", ""),
    ("parsable", ""),
    ("requeue", ""),
    ("signal", ""),
    ("wait", ""),
    ("wrap", ""),
];

impl ExecutorSpec {
    pub fn read(entry: &Entry, problems: &mut Problems) -> Option<Self> {
        let mut fields = Fields::of(&entry.value, "`executor`", entry.key_span, problems)?;
        let uses = fields.entry("use").and_then(|entry| {
            let name = fields::text(&entry.value, "use", problems)?;
            if !EXECUTORS.contains(&name.as_str()) {
                let problem =
                    Diagnostic::new(entry.value.span, format!("there is no executor `{name}`"))
                        .guess(suggest::closest(&name, EXECUTORS));
                problems
                    .push(problem.help(format!("the executors are {}", suggest::list(EXECUTORS))));
            }
            Some(name)
        });
        let slurm = fields
            .entry("slurm")
            .and_then(|entry| SlurmSpec::read(entry, problems))
            .unwrap_or_default();
        fields.finish(problems);
        Some(Self { uses, slurm })
    }
}

impl SlurmSpec {
    fn read(entry: &Entry, problems: &mut Problems) -> Option<Self> {
        let mut fields = Fields::of(&entry.value, "`slurm`", entry.key_span, problems)?;
        let mut job = JobSpec::read_limits(&mut fields, problems);
        job.cpus = fields
            .get("cpus")
            .and_then(|yaml| job::count(yaml, "cpus", 1, 1024, problems));
        job.gpus = fields
            .get("gpus")
            .and_then(|yaml| job::count(yaml, "gpus", 0, 64, problems));
        let account = fields.text("account", problems);
        let qos = fields.text("qos", problems);
        let max_jobs = fields
            .get("max_jobs")
            .and_then(|yaml| job::count(yaml, "max_jobs", 1, 10_000, problems));
        let options = fields
            .get("options")
            .and_then(|yaml| fields::entries(yaml, "`options`", problems))
            .unwrap_or(&[]);
        let options = options
            .iter()
            .filter_map(|entry| option(entry, problems))
            .collect();
        fields.finish(problems);
        Some(Self {
            job,
            account,
            qos,
            max_jobs,
            options,
        })
    }
}

/// One of `options`: `true` is a flag, `false` and nothing leave it out.
fn option(entry: &Entry, problems: &mut Problems) -> Option<(String, Option<String>)> {
    let name = entry.key.trim_start_matches('-').to_owned();
    let fine = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    if name.len() < 2 || !name.bytes().all(fine) {
        let message = format!("`{}` is no long option of `sbatch`", entry.key);
        problems.push(
            Diagnostic::new(entry.key_span, message)
                .help("write its long name, such as `constraint: a100` or `exclusive: true`"),
        );
        return None;
    }
    if let Some((_, key)) = TAKEN.iter().find(|(taken, _)| *taken == name) {
        let message = format!("`{name}` cannot be among the `options`");
        let help = match *key {
            "" => "flow sets it itself".to_owned(),
            key => format!("it has a key of its own: `{key}`"),
        };
        problems.push(Diagnostic::new(entry.key_span, message).help(help));
        return None;
    }
    match &entry.value.kind {
        Kind::Bool(true) => Some((name, None)),
        Kind::Bool(false) | Kind::Null => None,
        Kind::Text(text) => Some((name, Some(text.clone()))),
        Kind::Number(number) => Some((name, Some(number.to_string()))),
        Kind::List(_) | Kind::Map(_) => {
            problems.push(expected(&entry.value, &name, "a text or a number"));
            None
        }
    }
}
