//! The model that a run has trained: its base, its adapter, and what it was trained on.

use std::path::PathBuf;

use serde_json::Value;

use super::error::CliError;
use super::folders::Folders;
use super::output::Output;
use super::{record, shared};
use crate::cache::{Artifact, Cache};
use crate::config::{ModelSpec, suggest};
use crate::digest::Digest;
use crate::models::Resolver;
use crate::runs::{NodeView, OutputView, RunView};

#[cfg_attr(
    not(feature = "torch"),
    expect(dead_code, reason = "read by the language-model runtime")
)]
pub struct Trained {
    /// Of the run.
    pub id: String,
    pub pipeline: String,
    /// The node that trained.
    pub node: String,
    /// A PEFT adapter folder in the cache.
    pub adapter: PathBuf,
    /// What the base is, for people: the hub's name or the file's.
    pub base_name: String,
    /// The precision that the base had in training, such as `nf4`.
    pub quant: String,
    /// The system message of the training; none when empty.
    pub system: String,
    /// The prompt of a user's turn, a template over a row.
    pub user: String,
    /// The column with the response.
    pub response: String,
    /// The tables that it learnt from and was watched on, by the port's name.
    pub tables: Vec<(String, Artifact)>,
    pub cache: Cache,
    base: ModelSpec,
    base_digest: Digest,
    root: PathBuf,
}

impl Trained {
    /// Looks into the record of the run `name` and the cache; `node` picks one of several that trained.
    ///
    /// # Errors
    /// A run that trained nothing or too much, or whose result is gone from the cache.
    pub fn find(
        folders: &Folders,
        name: &str,
        node: Option<&str>,
        offline: bool,
        output: &Output,
    ) -> Result<Self, CliError> {
        let view = record::show(folders, name)?;
        let (trained, adapter) = pick(&view, node)?;
        if !offline {
            shared::ensure(&view.head.cache, [&adapter.artifact()], output)?;
        }
        let cache = Cache::open_read_only(&view.head.cache)?;
        let id = view.head.id.clone();
        let gone = || {
            CliError::failed(
                format!(
                    "what `{}` of the run {id} gave is no longer in the cache `{}`",
                    trained.name,
                    view.head.cache.display()
                ),
                Some("run the pipeline again".to_owned()),
            )
        };
        let fingerprint = trained.fingerprint.ok_or_else(gone)?;
        let manifest = cache.manifest(fingerprint)?.ok_or_else(gone)?;
        let folder = cache.object_path(&adapter.digest);
        if !folder.is_dir() {
            return Err(gone());
        }
        let unknown_base = || {
            let help = "run the pipeline again with this version of flow; what is cached is not done again";
            CliError::wrong(
                format!(
                    "the record of the run {id} does not say where the model of `{}` is",
                    trained.name
                ),
                help,
            )
        };
        let base = view
            .head
            .models
            .get(&format!("{}.model", trained.name))
            .ok_or_else(unknown_base)?;
        let text = |param: &str| match manifest
            .params
            .get(param)
            .map(|text| serde_json::from_str(text))
        {
            Some(Ok(Value::String(text))) => text,
            _ => String::new(),
        };
        let tables = ["train", "validation"].into_iter().filter_map(|port| {
            let digest = manifest.inputs.get(port)?;
            Some((port.to_owned(), table(&view, digest)?))
        });
        Ok(Self {
            node: trained.name.clone(),
            adapter: folder,
            base_name: base_name(base),
            quant: text("quant"),
            system: text("chat.system"),
            user: text("chat.user"),
            response: text("chat.response"),
            tables: tables.collect(),
            base: base.clone(),
            base_digest: *manifest.models.get("model").ok_or_else(unknown_base)?,
            root: folders.root.clone(),
            pipeline: view.head.pipeline.clone(),
            id,
            cache,
        })
    }

    /// The files of the base, which must be those of the training; fetched where they are not here, unless `offline`.
    ///
    /// # Errors
    /// Files that are missing or have changed.
    #[cfg_attr(
        not(feature = "torch"),
        expect(dead_code, reason = "read by the language-model runtime")
    )]
    pub fn base(&self, offline: bool) -> Result<PathBuf, CliError> {
        let resolver = Resolver {
            root: &self.root,
            offline,
            digest: &|path| self.cache.digest_path(path),
            fetching: &|_, _, _| {},
        };
        let found = resolver
            .resolve(&self.base)
            .map_err(|error| CliError::failed(error.message, error.help))?;
        if found.digest != self.base_digest {
            return Err(CliError::failed(
                format!("`{}` is not the model that the run {} trained", found.path.display(), self.id),
                Some("its files have changed since: put the old ones back, or run the pipeline again".to_owned()),
            ));
        }
        Ok(found.path)
    }
}

/// The node that trained, and the adapter it gave.
fn pick<'a>(
    view: &'a RunView,
    wanted: Option<&str>,
) -> Result<(&'a NodeView, &'a OutputView), CliError> {
    let id = &view.head.id;
    let mut trained: Vec<_> = view
        .nodes
        .iter()
        .filter(|node| node.op == "train")
        .filter_map(|node| {
            Some((
                node,
                node.outputs
                    .iter()
                    .find(|output| output.name == "adapter")?,
            ))
        })
        .collect();
    if let Some(wanted) = wanted {
        let names: Vec<_> = trained.iter().map(|(node, _)| node.name.clone()).collect();
        let of_stage = format!("{wanted}.");
        trained.retain(|(node, _)| node.name == wanted || node.name.starts_with(&of_stage));
        if trained.is_empty() && !names.is_empty() {
            let help = format!(
                "there are {}",
                suggest::list(names.iter().map(String::as_str))
            );
            return Err(CliError::wrong(
                format!("no node `{wanted}` of the run {id} gave an adapter"),
                help,
            ));
        }
    }
    match trained.as_slice() {
        [] => Err(CliError::wrong(
            format!("the run {id} has trained nothing"),
            "name a run that has an adapter: `flow runs` lists them, `flow show RUN` says what each gave",
        )),
        [one] => Ok(*one),
        several => {
            let names = suggest::list(several.iter().map(|(node, _)| node.name.as_str()));
            Err(CliError::wrong(
                format!("the run {id} has trained several models"),
                format!("pick one with `--node`: {names}"),
            ))
        }
    }
}

/// The table with this content, which some node of the run gave.
fn table(view: &RunView, digest: &Digest) -> Option<Artifact> {
    let mut outputs = view.nodes.iter().flat_map(|node| &node.outputs);
    let found = outputs.find(|output| output.digest == *digest)?;
    Some(Artifact {
        kind: found.kind,
        digest: found.digest,
        rows: found.rows,
        bytes: found.bytes,
    })
}

fn base_name(base: &ModelSpec) -> String {
    let file = |path: &String| {
        let name = std::path::Path::new(path).file_name()?;
        Some(name.to_string_lossy().into_owned())
    };
    base.hf
        .clone()
        .or_else(|| base.path.as_ref().and_then(file))
        .unwrap_or_default()
}
