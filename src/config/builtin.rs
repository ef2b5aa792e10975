//! The stages of this repository's `stages/`, compiled into the binary so that a pipeline can use them anywhere.

/// `stage/file` and its text, sorted; written by `build.rs`.
static FILES: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/stages.rs"));

/// The text of a file of a built-in stage.
pub fn file(stage: &str, file: &str) -> Option<&'static str> {
    let path = format!("{stage}/{file}");
    FILES
        .iter()
        .find(|(name, _)| *name == path)
        .map(|(_, text)| *text)
}

/// Names of the built-in stages.
pub fn names() -> impl Iterator<Item = &'static str> {
    FILES
        .iter()
        .filter_map(|(name, _)| name.strip_suffix("/stage.yaml"))
}
