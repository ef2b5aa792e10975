//! Which tables of a run play which part, told by ops, ports and column names; nothing here is about one pipeline.

use super::Tables;

/// The tables a report speaks of. Full output names.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Roles {
    /// The rows as they came in: the first table with `id` and `question`, else the first with `id`.
    pub source: Option<String>,
    /// The column by whose values rows are told apart, and the table that has it.
    pub group: Option<String>,
    /// The parts the last rows were split into: training, validation.
    pub train: Option<String>,
    pub validation: Option<String>,
    /// Where the rows of the split came from, or the last table that looks like the source.
    pub kept: Option<String>,
}

impl Roles {
    pub fn of(tables: &Tables) -> Self {
        let names = tables.names();
        let source = names
            .iter()
            .find(|full| tables.has(full, &["id", "question", "answer"]))
            .or_else(|| names.iter().find(|full| tables.has(full, &["id"])))
            .cloned();
        let exports = &tables.run().view.head.exports;
        let part = |name: &str| {
            let of_split = |(exported, target): (&String, &String)| {
                let (stage, output) = exported.split_once('.')?;
                let has_both = ["train", "validation"]
                    .iter()
                    .all(|part| exports.contains_key(&format!("{stage}.{part}")));
                (output == name && has_both && tables.has(target, &["id"])).then(|| target.clone())
            };
            exports.iter().find_map(of_split)
        };
        let (train, validation) = (part("train"), part("validation"));
        let group = group(tables, source.as_deref());
        let kept = kept(
            tables,
            source.as_deref(),
            train.as_deref(),
            group.as_deref(),
        );
        Self {
            source,
            group,
            train,
            validation,
            kept,
        }
    }
}

/// The column the split is stratified by, or the usual one.
fn group(tables: &Tables, source: Option<&str>) -> Option<String> {
    let source = source?;
    let run = tables.run();
    let asked = run.graph.nodes.iter().find_map(|node| {
        ["params.by", "group"]
            .iter()
            .find_map(|param| node.param(param))
    });
    [asked, Some("question_type".to_owned())]
        .into_iter()
        .flatten()
        .find(|column| tables.has(source, &[column]))
}

fn kept(
    tables: &Tables,
    source: Option<&str>,
    train: Option<&str>,
    group: Option<&str>,
) -> Option<String> {
    let mut like_source = vec!["id"];
    like_source.extend(group);
    if source.is_some_and(|source| tables.has(source, &["question", "answer"])) {
        like_source.extend(["question", "answer"]);
    }
    let is_like = |full: &&String| tables.has(full, &like_source);
    // The rows that the split read.
    let run = tables.run();
    let from_split = train
        .and_then(|train| train.rsplit_once('.'))
        .and_then(|(node, _)| run.graph.node(node))
        .and_then(|node| {
            let inputs = node.inputs.values().map(ToString::to_string);
            inputs.into_iter().find(|full| is_like(&full))
        });
    from_split.or_else(|| tables.names().iter().rfind(is_like).cloned())
}
