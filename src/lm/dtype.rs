//! Names of element kinds as PyTorch's ecosystem writes them into files.

use tch::Kind;

const NAMES: [(Kind, &str); 3] = [
    (Kind::Float, "float32"),
    (Kind::BFloat16, "bfloat16"),
    (Kind::Half, "float16"),
];

pub(super) fn name(kind: Kind) -> &'static str {
    NAMES
        .iter()
        .find(|(of, _)| *of == kind)
        .map_or("float32", |(_, name)| name)
}

pub(super) fn kind(name: &str) -> Option<Kind> {
    NAMES
        .iter()
        .find(|(_, of)| *of == name)
        .map(|(kind, _)| *kind)
}
