with judged as (
    select unnest(every_id) as id from groups
),
together as (
    select * from original anti join judged using (id)
    union all by name
    select * from deduped
)
select *
from together
qualify row_number() over (partition by question, answer order by id) = 1
