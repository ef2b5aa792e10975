select 'stratum `' || stratum || '` has one row; it goes to training' as note
from output
group by stratum
having count(*) = 1
order by stratum
