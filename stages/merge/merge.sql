with judged as (
    select unnest(every_id) as id from groups
),
together as not materialized (
    select * from original anti join judged using (id)
    union all by name
    select * from deduped
),
-- By hash first: the texts of all rows at once are too much to hold, and few pairs come twice.
suspects as (
    select hash(question, answer) as pair from together group by pair having count(*) > 1
)
select together.*
from together anti join suspects on hash(question, answer) = pair
union all
select together.*
from together semi join suspects on hash(question, answer) = pair
qualify row_number() over (partition by question, answer order by id) = 1
