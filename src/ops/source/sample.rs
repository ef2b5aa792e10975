//! A sample of rows: by seed, in the shares of strata, groups whole.

use duckdb::Connection;

use crate::cache::quote;

/// Draws at most `limit` rows of `kept`, and gives the condition that a drawn row fulfils.
///
/// Rows of a group (equal in `together`) come all or none. A stratum (equal in `by`, told by the group's first row) has its
/// share of `limit`, rounded by largest remainder. Groups come in the order of a hash of seed and group, so that another
/// row in the data moves few others; one that does not fit any more ends its stratum.
pub(super) fn draw(
    connection: &Connection,
    limit: u64,
    by: &[String],
    together: &[String],
    seed: u64,
) -> duckdb::Result<String> {
    let key = |columns: &[String]| {
        let parts: Vec<String> = columns
            .iter()
            .map(|column| format!("coalesce(md5({}::varchar), '-')", quote(column)))
            .collect();
        format!(
            "concat('', {})",
            if parts.is_empty() {
                "''".to_owned()
            } else {
                parts.join(", ")
            }
        )
    };
    // A row that lacks what it would be grouped by stands alone.
    let lacking: Vec<String> = together
        .iter()
        .map(|column| format!("{} is null", quote(column)))
        .collect();
    let group = if together.is_empty() {
        "md5(id)".to_owned()
    } else {
        format!(
            "case when {} then md5(id) else {} end",
            lacking.join(" or "),
            key(together)
        )
    };
    connection.execute_batch(&format!(
        "create table members as select id, {group} as unit, {} as stratum from kept;
        create table units as select unit, first(stratum order by id) as stratum, count(*) as n, md5('{seed}' || unit) as place
            from members group by unit;
        create table shares as with sizes as (select stratum, sum(n) as n from units group by stratum),
            exact as (select stratum, n, {limit}::double * n / sum(n) over () as share from sizes),
            ranked as (select *, row_number() over (order by share - floor(share) desc, stratum) as rank,
                {limit} - sum(floor(share)) over () as rest from exact)
            select stratum, least(n, floor(share) + case when rank <= rest then 1 else 0 end) as share from ranked;
        create table drawn as with lined as (select unit, stratum,
                sum(n) over (partition by stratum order by place, unit rows unbounded preceding) as through from units)
            select unit from lined join shares using (stratum) where through <= share",
        key(by),
    ))?;
    Ok("id in (select id from members where unit in (select unit from drawn))".to_owned())
}
