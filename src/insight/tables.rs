//! The tables of one run, by the full names of their outputs (`split.train.rows`).

use std::collections::{BTreeMap, HashMap};

use serde_json::{Map, Value};

use crate::cache::{Artifact, Cache, CacheError};
use crate::config::{ArtifactKind, Columns};
use crate::ops::{OpError, Table};
use crate::runs::{OutputView, Run};

pub struct Tables<'a> {
    run: &'a Run,
    cache: &'a Cache,
    /// Every table that the cache still has, in the order of the graph.
    names: Vec<String>,
    known: HashMap<String, (&'a OutputView, Columns)>,
}

impl<'a> Tables<'a> {
    /// Looks which tables are there; one that `flow cache gc` has dropped is left out.
    pub fn new(run: &'a Run, cache: &'a Cache) -> Result<Self, CacheError> {
        let columns = cache.table_columns()?;
        let (mut names, mut known) = (Vec::new(), HashMap::new());
        for output in run.outputs() {
            if let (ArtifactKind::Table, Some(found)) =
                (output.output.kind, columns.get(&output.output.digest))
            {
                names.push(output.full());
                known.insert(output.full(), (output.output, found.clone()));
            }
        }
        Ok(Self {
            run,
            cache,
            names,
            known,
        })
    }

    pub fn run(&self) -> &'a Run {
        self.run
    }

    /// Full names, in the order of the graph.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The columns of a table; empty where it is gone.
    pub fn columns(&self, full: &str) -> &[(String, String)] {
        self.known
            .get(full)
            .map_or(&[], |(_, columns)| columns.as_slice())
    }

    pub fn has(&self, full: &str, wanted: &[&str]) -> bool {
        let columns = self.columns(full);
        !columns.is_empty()
            && wanted
                .iter()
                .all(|wanted| columns.iter().any(|(name, _)| name == wanted))
    }

    pub fn output(&self, full: &str) -> Option<&'a OutputView> {
        self.known.get(full).map(|(output, _)| *output)
    }

    /// Rows of a query in which each table has the name it is given here.
    pub fn query(&self, tables: &[(&str, &str)], sql: &str) -> Result<Table, CacheError> {
        let read = |connection: &_| Table::query(connection, sql);
        self.cache
            .with_views(&self.views(tables), read)
            .map_err(|error| match error {
                OpError::Cache(error) => error,
                other => CacheError::Query(other.to_string()),
            })
    }

    /// Rows of a query as objects; DuckDB turns values of every type into JSON.
    pub fn objects(
        &self,
        tables: &[(&str, &str)],
        sql: &str,
    ) -> Result<Vec<Map<String, Value>>, CacheError> {
        let sql = format!("select to_json(row_)::varchar from (\n{sql}\n) row_");
        let object = |cells: &Vec<crate::ops::Cell>| {
            let text = cells.first().and_then(|cell| cell.as_str()).unwrap_or("{}");
            serde_json::from_str(text).map_err(|error| CacheError::Query(error.to_string()))
        };
        self.query(tables, &sql)?.rows.iter().map(object).collect()
    }

    fn views(&self, tables: &[(&str, &str)]) -> BTreeMap<String, Artifact> {
        let artifact = |(name, full): &(&str, &str)| {
            let output = self.output(full)?;
            Some(((*name).to_owned(), output.artifact()))
        };
        tables.iter().filter_map(artifact).collect()
    }
}
