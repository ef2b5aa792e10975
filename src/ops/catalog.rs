//! The list of ops.

use std::collections::BTreeMap;

use super::{Op, RunFn};

/// All ops by name, with the function that runs each where this binary has it.
#[derive(Default)]
pub struct Catalog {
    ops: BTreeMap<&'static str, Entry>,
    has_language_model: bool,
}

struct Entry {
    op: Box<dyn Op>,
    run: Option<RunFn>,
}

impl Catalog {
    /// What the light binary can run, and the declarations of everything else.
    pub fn light() -> Self {
        let mut catalog = Self::default();
        catalog.add(super::source::Source, Some(super::source::run));
        catalog.add(super::sql::Sql, Some(super::sql::run));
        catalog.add(super::command::Command, Some(super::command::run));
        catalog.add(super::score::Score, Some(super::score::run));
        catalog.add(super::bootstrap::Bootstrap, Some(super::bootstrap::run));
        catalog.add(super::judge::Judge, Some(super::judge::run_endpoint));
        catalog.add(super::train::Train, None);
        catalog.add(super::generate::Generate, None);
        catalog.add(super::embed::Embed, None);
        catalog
    }

    /// Everything, with the functions of the language-model runtime.
    #[cfg(feature = "torch")]
    pub fn full() -> Self {
        let mut catalog = Self::light();
        catalog.has_language_model = true;
        catalog.add(super::judge::Judge, Some(super::judge::run));
        catalog.add(super::train::Train, Some(super::train::run));
        catalog.add(super::generate::Generate, Some(super::generate::run));
        catalog.add(super::embed::Embed, Some(super::embed::run));
        catalog
    }

    /// Whether the language-model runtime is linked in.
    pub fn has_language_model(&self) -> bool {
        self.has_language_model
    }

    pub fn add(&mut self, op: impl Op + 'static, run: Option<RunFn>) {
        self.ops.insert(
            op.name(),
            Entry {
                op: Box::new(op),
                run,
            },
        );
    }

    pub fn get(&self, name: &str) -> Option<&dyn Op> {
        self.ops.get(name).map(|entry| &*entry.op)
    }

    /// `None` where the op needs the language-model runtime and this binary is the light one.
    pub fn run_fn(&self, name: &str) -> Option<RunFn> {
        self.ops.get(name).and_then(|entry| entry.run)
    }

    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.ops.keys().copied()
    }
}
