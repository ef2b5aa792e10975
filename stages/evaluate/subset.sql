-- The same rows whatever else is there: drawn by a hash of the id.
select *
from rows
qualify $limit = 0 or row_number() over (order by md5(id), id) <= $limit
