select 'the stratum `' || stratum || '` has one row, which goes to training'
from output
group by stratum
having count(*) = 1
order by stratum
