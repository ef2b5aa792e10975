with strata as (
    select id, coalesce(struct_extract(rows, $by)::varchar, '') as stratum from rows
),
ranked as (
    select id, stratum,
           row_number() over (partition by stratum order by md5(id || ':' || $seed::varchar), id) as place,
           count(*) over (partition by stratum) as size
    from strata
)
select id, stratum, if(size > 1 and place <= round(size * $validation), 'validation', 'train') as part
from ranked
