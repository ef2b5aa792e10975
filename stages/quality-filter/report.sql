select *, rows_in - rows_kept as rows_dropped
from (
    select (select count(*) from rows) as rows_in,
           (select count(*) from output) as rows_kept
)
