//! Checked params to what a node keeps of them: plain JSON, and what they name outside the pipeline.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use crate::config::{
    Diagnostic, Entry, Kind, Model, ModelSpec, Param, ParamKind, PipelineSpec, Problems, Span,
    StageFolder, Yaml, display, has_credentials, read_text, suggest,
};
use crate::digest::Digest;
use crate::graph::{PathInput, StageFile};

/// What the params of one node name.
#[derive(Default)]
pub(super) struct Named {
    pub files: BTreeMap<String, StageFile>,
    pub paths: BTreeMap<String, PathInput>,
    pub models: BTreeMap<String, ModelSpec>,
    /// Dotted names of params that stay out of the fingerprint.
    pub unhashed: Vec<String>,
}

/// Finds files, paths and models for all nodes of a pipeline; each file is read once.
pub(super) struct Finder<'a> {
    spec: &'a PipelineSpec,
    /// Those of the variants at hand.
    pub models: &'a BTreeMap<String, Model>,
    check_data: bool,
    pipeline_folder: PathBuf,
    files: HashMap<PathBuf, Option<StageFile>>,
    there: HashMap<PathBuf, bool>,
}

/// The walk through the params of one call.
struct Walk<'w, 'a> {
    finder: &'w mut Finder<'a>,
    home: Home<'w>,
    named: Named,
    problems: &'w mut Problems,
}

/// Where the data of the paths in one record can be had: its `url` and `digest`.
#[derive(Default)]
struct Download {
    url: Option<String>,
    digest: Option<Digest>,
}

impl Walk<'_, '_> {
    fn record(&mut self, prefix: &str, params: &BTreeMap<String, Param>, values: &[Entry]) {
        let text = |key: &str| {
            values
                .iter()
                .find(|entry| entry.key == key)
                .and_then(|entry| match &entry.value.kind {
                    Kind::Text(text) => Some(text.clone()),
                    _ => None,
                })
        };
        let download = Download {
            url: text("url"),
            digest: text("digest").and_then(|digest| digest.parse().ok()),
        };
        let url = values.iter().find(|entry| entry.key == "url");
        if let Some(url) = url.filter(|_| download.url.as_deref().is_some_and(has_credentials)) {
            self.problems.push(
                Diagnostic::new(url.value.span, "the `url` holds a user or a password")
                    .help("fetch the data by other means and name the copy with `path`"),
            );
        }
        for entry in values {
            let Some(param) = params.get(&entry.key) else {
                continue;
            };
            let name = format!("{prefix}{}", entry.key);
            if !param.in_fingerprint {
                self.named.unhashed.push(name.clone());
            }
            self.value(&name, &param.kind, &entry.value, &download);
        }
    }

    fn value(&mut self, name: &str, kind: &ParamKind, yaml: &Yaml, download: &Download) {
        match (kind, &yaml.kind) {
            (ParamKind::File, Kind::Text(text)) => {
                if let Some(file) = self.finder.file(text, yaml.span, self.home, self.problems) {
                    self.named.files.insert(name.to_owned(), file);
                }
            }
            (ParamKind::Path, Kind::Text(text)) => {
                let path = self
                    .finder
                    .path(text, yaml.span, download.url.is_some(), self.problems);
                let input = PathInput {
                    path,
                    url: download.url.clone(),
                    digest: download.digest,
                };
                self.named.paths.insert(name.to_owned(), input);
            }
            (ParamKind::Model, Kind::Text(text)) => {
                if let Some(model) = self.finder.model(text, yaml.span, self.problems) {
                    self.named.models.insert(name.to_owned(), model);
                }
            }
            (ParamKind::List(item), Kind::List(items)) => {
                for (index, value) in items.iter().enumerate() {
                    self.value(&format!("{name}.{index}"), item, value, download);
                }
            }
            (ParamKind::Map(item), Kind::Map(entries)) => {
                for entry in entries {
                    self.value(
                        &format!("{name}.{}", entry.key),
                        item,
                        &entry.value,
                        download,
                    );
                }
            }
            (ParamKind::Record(fields), Kind::Map(entries)) => {
                self.record(&format!("{name}."), fields, entries);
            }
            _ => {}
        }
    }
}

/// The stage a step belongs to: names that were written in its `stage.yaml` are relative to its folder.
pub(super) type Home<'a> = Option<(&'a StageFolder, u32)>;

impl<'a> Finder<'a> {
    pub(super) fn new(spec: &'a PipelineSpec, check_data: bool) -> Self {
        let absolute = std::path::absolute(&spec.path).unwrap_or_else(|_| spec.path.clone());
        let pipeline_folder = absolute.parent().map(Path::to_owned).unwrap_or_default();
        Self {
            spec,
            models: &spec.models,
            check_data,
            pipeline_folder,
            files: HashMap::new(),
            there: HashMap::new(),
        }
    }

    /// Walks the params of one call; `home` is the stage it is a step of.
    pub(super) fn find(
        &mut self,
        params: &BTreeMap<String, Param>,
        values: &[Entry],
        home: Home,
        problems: &mut Problems,
    ) -> Named {
        let mut walk = Walk {
            finder: self,
            home,
            named: Named::default(),
            problems,
        };
        walk.record("", params, values);
        walk.named
    }

    /// A file named in `stage.yaml` lies in the stage's folder; one named by the user beside the pipeline or in the root, or in
    /// the stage's folder after all.
    fn file(
        &mut self,
        name: &str,
        span: Span,
        home: Home,
        problems: &mut Problems,
    ) -> Option<StageFile> {
        let in_stage = home.map(|(folder, _)| folder);
        if let Some((folder, source)) = home
            && span.source == source
        {
            return self.stage_file(folder, name, span, problems);
        }
        let places = [self.pipeline_folder.join(name), self.spec.root.join(name)];
        if let Some(path) = places.iter().find(|path| path.is_file()) {
            let read = |path: &Path| {
                read_text(path).map_err(|problem| Diagnostic {
                    span: Some(span),
                    ..problem
                })
            };
            return self.read_once(path.clone(), problems, read);
        }
        if let Some(folder) = in_stage
            && folder.read(name).is_ok()
        {
            return self.stage_file(folder, name, span, problems);
        }
        let mut looked: Vec<_> = places.iter().map(|path| display(path)).collect();
        looked.extend(in_stage.map(|folder| display(&folder.path(name))));
        looked.dedup();
        let problem = Diagnostic::new(span, format!("there is no file `{name}`"));
        problems.push(problem.help(format!(
            "looked for {}",
            suggest::list(looked.iter().map(String::as_str))
        )));
        None
    }

    fn stage_file(
        &mut self,
        folder: &StageFolder,
        name: &str,
        span: Span,
        problems: &mut Problems,
    ) -> Option<StageFile> {
        let read = |_: &Path| {
            folder.read(name).map_err(|problem| Diagnostic {
                span: Some(span),
                ..problem
            })
        };
        self.read_once(folder.path(name), problems, read)
    }

    fn read_once(
        &mut self,
        path: PathBuf,
        problems: &mut Problems,
        read: impl FnOnce(&Path) -> Result<String, Diagnostic>,
    ) -> Option<StageFile> {
        if let Some(known) = self.files.get(&path) {
            return known.clone();
        }
        let file = match read(&path) {
            Ok(text) => Some(StageFile {
                digest: Digest::of(&text),
                path: path.clone(),
                text,
            }),
            Err(problem) => {
                problems.push(problem);
                None
            }
        };
        self.files.insert(path, file.clone());
        file
    }

    /// Data is looked for only where it cannot be downloaded.
    fn path(&mut self, text: &str, span: Span, has_url: bool, problems: &mut Problems) -> PathBuf {
        // `${NAME:-}` of a variable that is not set: nothing here, all of it at the `url`.
        if text.is_empty() {
            if !has_url {
                let problem = Diagnostic::new(span, "the path is empty");
                problems.push(problem.help(
                    "name a file or folder, or give a `url`; a variable in it may not be set",
                ));
            }
            return PathBuf::new();
        }
        let path = self.spec.root.join(text);
        if self.check_data && !has_url && !self.is_there(&path) {
            let problem = Diagnostic::new(
                span,
                format!("there is no file or folder `{}`", display(&path)),
            );
            problems.push(problem.help(
                "paths are relative to the project folder; correct it, or put the data there",
            ));
        }
        path
    }

    fn model(&mut self, name: &str, span: Span, problems: &mut Problems) -> Option<ModelSpec> {
        let Some(Model { spec, span: place }) = self.models.get(name) else {
            let names = || self.models.keys().map(String::as_str);
            let known = if self.models.is_empty() {
                "there are none yet".to_owned()
            } else {
                format!("there are {}", suggest::list(names()))
            };
            let problem = Diagnostic::new(span, format!("there is no model `{name}`"))
                .guess(suggest::closest(name, names()));
            problems.push(problem.help(format!("add it under `models:`; {known}")));
            return None;
        };
        if let Some(path) = &spec.path {
            let path = self.spec.root.join(path);
            if self.check_data && !self.is_there(&path) {
                let problem = Diagnostic::new(
                    *place,
                    format!("the model `{name}` is not at `{}`", display(&path)),
                );
                problems.push(problem.help("a model path is a GGUF file or a folder with `config.json`; correct it, or put the model there"));
                return None;
            }
        }
        Some(spec.clone())
    }

    fn is_there(&mut self, path: &Path) -> bool {
        if let Some(there) = self.there.get(path) {
            return *there;
        }
        let there = path.exists();
        self.there.insert(path.to_owned(), there);
        there
    }
}
