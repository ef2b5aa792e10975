select *, rows_in - rows_judged + rows_chosen - rows_out as exact_duplicates_dropped
from (
    select (select count(*) from original) as rows_in,
           (select count(*) from original semi join (select unnest(every_id) as id from groups) using (id)) as rows_judged,
           (select count(*) from deduped) as rows_chosen,
           (select count(*) from output) as rows_out
)
