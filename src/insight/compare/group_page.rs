//! The table of a matrix as a page.

use serde::Serialize;

use super::Group;
use crate::insight::InsightError;
use crate::insight::numbers::Decimals;
use crate::insight::page;
use crate::insight::report::state;
use crate::ui::{plural, seconds};

#[derive(Serialize)]
struct Page<'a> {
    group: &'a Group,
    about: String,
    header: Vec<&'a str>,
    rows: Vec<Row<'a>>,
    same: Vec<(&'a String, String)>,
}

#[derive(Serialize)]
struct Row<'a> {
    id: &'a str,
    state: &'static str,
    error: Option<&'a str>,
    params: Vec<String>,
    /// Value, difference, whether it is the best.
    cells: Vec<(String, String, bool)>,
    own_nodes: usize,
    time: String,
}

/// Draws `group.html`.
pub fn group_page(group: &Group) -> Result<String, InsightError> {
    let row = |(place, variant): (usize, &'_ super::VariantRow)| {
        let cell = |metric: &super::GroupMetric| {
            let decimals = metric.decimals();
            let value =
                metric.values[place].map_or_else(|| "–".to_owned(), |value| decimals.plain(value));
            let difference = metric.differences[place].filter(|_| place > 0);
            let difference = difference
                .map(|value| decimals.signed(value))
                .unwrap_or_default();
            (value, difference, metric.best.contains(&place))
        };
        (
            variant
                .params
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>(),
            group.metrics.iter().map(cell).collect::<Vec<_>>(),
        )
    };
    let rows = group.variants.iter().enumerate().map(|(place, variant)| {
        let (params, cells) = row((place, variant));
        Row {
            id: &variant.id,
            state: state(variant.state),
            error: variant.error.as_deref(),
            params,
            cells,
            own_nodes: variant.own_nodes,
            time: seconds(variant.own_seconds),
        }
    });
    let profile = group
        .profile
        .as_ref()
        .map(|name| format!(", profile {name}"));
    let page = Page {
        about: format!(
            "{}{}: {}",
            group.pipeline,
            profile.unwrap_or_default(),
            plural(group.variants.len() as u64, "variant")
        ),
        header: group
            .metrics
            .iter()
            .map(|metric| metric.name.as_str())
            .collect(),
        rows: rows.collect(),
        same: group
            .same
            .iter()
            .map(|(name, value)| (name, Decimals::of([*value]).plain(*value)))
            .collect(),
        group,
    };
    Ok(page::render("group.html", &page)?)
}
