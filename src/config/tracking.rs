//! The `tracking:` section: where runs are reported to. Checked and kept here; read by `tracking::settings`.

use super::diagnostic::{Diagnostic, Problems};
use super::fields::Fields;
use super::suggest;
use super::yaml::Entry;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrackingSpec {
    pub entity: Option<String>,
    pub project: Option<String>,
    pub base_url: Option<String>,
    pub mode: Option<String>,
}

pub const MODES: [&str; 3] = ["online", "offline", "disabled"];

impl TrackingSpec {
    pub fn read(entry: &Entry, problems: &mut Problems) -> Option<Self> {
        let mut fields = Fields::of(&entry.value, "`tracking`", entry.key_span, problems)?;
        let entity = fields.text("entity", problems);
        let project = fields.text("project", problems);
        let base_url = fields.text("base_url", problems);
        let mode = fields.text("mode", problems);
        if let Some(mode) = mode.as_deref().filter(|mode| !MODES.contains(mode)) {
            let span = entry
                .value
                .entry("mode")
                .map_or(entry.key_span, |entry| entry.value.span);
            let problem = Diagnostic::new(span, format!("`{mode}` is no mode of tracking"))
                .guess(suggest::closest(mode, MODES));
            problems.push(problem.help(format!("the modes are {}", suggest::list(MODES))));
        }
        fields.finish(problems);
        Some(Self {
            entity,
            project,
            base_url,
            mode,
        })
    }
}
