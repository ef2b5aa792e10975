select rows.*
from rows
join verdicts using (id)
where case verdicts.choice when 1 then verdicts.probability else 1 - verdicts.probability end >= $threshold
