//! One call of an op or a stage: what is used, with which params and inputs. A stage of a pipeline and a step of a stage are both calls.

use super::diagnostic::{Diagnostic, Problems};
use super::fields::{self, Fields, expected};
use super::job::JobSpec;
use super::source::Span;
use super::yaml::{Entry, Kind};

#[derive(Debug, Clone)]
pub struct Call {
    pub name: String,
    /// Where the call's name is written.
    pub span: Span,
    /// The op or stage; empty where it is missing, which is a problem already reported.
    pub uses: String,
    pub uses_span: Span,
    pub with: Vec<Entry>,
    pub inputs: Vec<InputRef>,
    /// `resources:` of a stage.
    pub job: JobSpec,
}

/// An input and what it is wired to: `stage` or `stage.output`.
#[derive(Debug, Clone)]
pub struct InputRef {
    pub port: String,
    pub port_span: Span,
    pub target: String,
    pub span: Span,
}

impl Call {
    /// Reads a stage of a pipeline.
    pub fn read_stage(entry: &Entry, problems: &mut Problems) -> Option<Self> {
        Self::read(entry, "a stage", "uses", problems)
    }

    /// Reads a step of a stage.
    pub fn read_step(entry: &Entry, problems: &mut Problems) -> Option<Self> {
        Self::read(entry, "a step", "op", problems)
    }

    fn read(
        entry: &Entry,
        what: &'static str,
        uses_key: &'static str,
        problems: &mut Problems,
    ) -> Option<Self> {
        check_name(entry, what, problems);
        let mut fields = Fields::of(&entry.value, what, entry.key_span, problems)?;
        let uses = fields.require(uses_key, problems);
        let uses_span = uses.map_or(entry.key_span, |yaml| yaml.span);
        let uses = uses
            .and_then(|yaml| fields::text(yaml, uses_key, problems))
            .unwrap_or_default();
        let with = fields
            .get("with")
            .and_then(|yaml| fields::entries(yaml, "`with`", problems))
            .unwrap_or(&[])
            .to_vec();
        let inputs = fields
            .get("inputs")
            .and_then(|yaml| fields::entries(yaml, "`inputs`", problems))
            .unwrap_or(&[]);
        let inputs = inputs
            .iter()
            .filter_map(|input| InputRef::read(input, problems))
            .collect();
        let mut job = JobSpec::default();
        if let Some(yaml) = fields.get("resources")
            && let Some(mut resources) = Fields::of(yaml, "`resources`", yaml.span, problems)
        {
            job = JobSpec::read(&mut resources, problems);
            resources.finish(problems);
        }
        fields.finish(problems);
        Some(Self {
            name: entry.key.clone(),
            span: entry.key_span,
            uses,
            uses_span,
            with,
            inputs,
            job,
        })
    }
}

impl InputRef {
    fn read(entry: &Entry, problems: &mut Problems) -> Option<Self> {
        let Kind::Text(target) = &entry.value.kind else {
            let problem = expected(&entry.value, &entry.key, "the name of a stage or a step");
            problems.push(problem.help("write `name` or `name.output`"));
            return None;
        };
        Some(Self {
            port: entry.key.clone(),
            port_span: entry.key_span,
            target: target.clone(),
            span: entry.value.span,
        })
    }
}

/// Names become parts of node names (`stage.step`), folder names and view names.
pub fn check_name(entry: &Entry, what: &str, problems: &mut Problems) {
    let fine = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    if entry.key.is_empty() || !entry.key.bytes().all(fine) {
        let message = format!("`{}` cannot be the name of {what}", entry.key);
        problems.push(
            Diagnostic::new(entry.key_span, message).help("use letters, digits, `-` and `_`"),
        );
    }
}
